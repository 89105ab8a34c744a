"""The versions that a file was written with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

FISOPT = "0.1.0"
_DEPENDENCIES = ("torch", "diffusers")


def versions(*more: str) -> dict[str, str]:
    """Versions of fisopt and of what it runs on, by package; what is not installed is left out.

    Args:
        more: further packages to name.
    """
    found = {"fisopt": FISOPT}
    for name in (*_DEPENDENCIES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
