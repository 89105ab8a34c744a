"""Methods of a model that would not do for an optimised module what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fisopt.errors import InputError

NEVER = "hooks layers, which a captured graph does not call; it cannot be combined with fisopt"
NEEDLESS = 'is not needed: backend="inductor" compiles each distinct block once'

ADVICE = {
    **dict.fromkeys(
        ("enable_group_offload", "enable_layerwise_casting", "enable_parallelism"),
        NEVER,
    ),
    **dict.fromkeys(("compile", "compile_repeated_blocks"), NEEDLESS),
}
"""Methods that are refused at once, and why; all others reach the original."""


def refusals(like: type) -> dict[str, Callable[..., NoReturn]]:
    """For each method of a class that would have no effect on a graph, one that says so."""
    return {name: _refusal(name, like) for name in ADVICE if hasattr(like, name)}


def _refusal(name: str, like: type) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(f"{name} of an optimised {like.__name__} {ADVICE[name]}")

    return refuse
