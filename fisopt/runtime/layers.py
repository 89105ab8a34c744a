"""Methods of a model that an optimised module refuses, or takes note of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from fisopt.errors import InputError
from fisopt.rewrite.tools.diffusers_hooks import OFFLOAD

NEVER = "hooks layers, which a captured graph does not call; it cannot be combined with fisopt"
NEEDLESS = 'is not needed: backend="inductor" compiles each distinct block once'


ADVICE = {
    "enable_parallelism": f"{NEVER}: fisopt.SequenceParallel() among the passes does the same",
    "enable_group_offload": f"hooks layers, which a captured graph does not call; {OFFLOAD}",
    **dict.fromkeys(("compile", "compile_repeated_blocks"), NEEDLESS),
}
"""Methods that are refused at once, and why; all others reach the original."""

EXCHANGES = ("load_lora_adapter",)
"""Methods that may write other adapters into the weights of those before, which no graph sees."""


def refusals(like: type) -> dict[str, Callable[..., NoReturn]]:
    """For each method of a class that would have no effect on a graph, one that says so."""
    return {name: _refusal(name, like) for name in ADVICE if hasattr(like, name)}


def noted(like: type, note: Callable[[Any], None]) -> dict[str, Callable[..., Any]]:
    """For each method of a class that exchanges adapters, one that takes note of it too."""
    held = {name: getattr(like, name, None) for name in EXCHANGES}
    return {name: _noting(method, note) for name, method in held.items() if callable(method)}


def _noting(method: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        note(module)
        return method(module, *args, **kwargs)

    return call


def _refusal(name: str, like: type) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(f"{name} of an optimised {like.__name__} {ADVICE[name]}")

    return refuse
