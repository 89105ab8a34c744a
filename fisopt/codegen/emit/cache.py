"""The disk cache: emitted sources, measured choices and captures, shared by processes.

Files are written beside their place and moved there, so that a reader never sees half of one
and of two writers the last one wins.  A file that is not what it should be is written anew.  Where
nothing can be written (no home, no rights, a full disk) fisopt works without files and says so.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from pathlib import Path

from fisopt.errors import FileError
from fisopt.files import write as write_file
from fisopt.reading import read_bytes

VARIABLE = "FISOPT_CACHE"


OFF = "off"


def is_off() -> bool:
    """Whether nothing is to be cached on the disk: ``FISOPT_CACHE=off``."""
    return os.environ.get(VARIABLE, "").lower() == OFF


def folder() -> Path:
    """Where files are cached: ``FISOPT_CACHE``, or fisopt in the platform's cache folder."""
    if is_off():
        return Path(os.devnull) / "fisopt"
    if given := os.environ.get(VARIABLE):
        return Path(given)
    try:
        return _of_platform()
    except RuntimeError:  # there is no home
        return Path(os.devnull) / "fisopt"  # where nothing can be written


def _of_platform() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "fisopt/cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/fisopt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fisopt"


def keep(name: str, text: str) -> Path:
    """Return the path of a cached text file, written if it is not there and can be.

    Args:
        name: of the file, below the cache folder.
        text: what it holds.
    """
    path = folder() / name
    found = _read(path)
    if found != text:
        if found is not None:
            rebuilt(path, "it does not hold what it was written with")
        write(path, text)
    return path


def write(path: Path, text: str) -> bool:
    """Write a file as one step; whether it could be written."""
    try:
        write_file(path, text)
    except FileError as error:
        _say_once(error)
        return False
    return True


def rebuilt(path: Path, why: str) -> None:
    """Warn that a cached file was found broken and is made again."""
    warnings.warn(f"{path} is made again: {why}", RuntimeWarning, stacklevel=3)


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _read(path: Path) -> str | None:
    try:
        return read_bytes(path).decode("utf-8", errors="replace")
    except FileError:  # writing it will say why
        return None


_said: list[str] = []


def _say_once(error: FileError) -> None:
    if not _said and not is_off():
        _said.append(str(error))
        warnings.warn(
            f"fisopt works without its disk cache: {error}; set {VARIABLE} to a folder that can be "
            "written",
            RuntimeWarning,
            stacklevel=4,
        )
