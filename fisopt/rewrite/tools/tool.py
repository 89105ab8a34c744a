"""A tool: what a package outside of torch leaves in models that capture and the runtime meet."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

from torch import nn
from torch._ops import OpOverload

Place = tuple[Mapping[str, Any], str]
"""What holds a tensor, and its name in there; it is looked up at every call."""

Read = Callable[[Any], tuple[Any, ...]]
"""Reads what of an attribute a graph depends on."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Where torch keeps the hooks of a module's forward call."""

_FILES = {
    "peft": "fisopt.rewrite.tools.peft",
    "torchao": "fisopt.rewrite.tools.torchao",
    "optimum.quanto": "fisopt.rewrite.tools.quanto",
    "bitsandbytes.nn": "fisopt.rewrite.tools.bitsandbytes",
    "diffusers.quantizers.gguf.utils": "fisopt.rewrite.tools.gguf",
    "diffusers.models.attention_dispatch": "fisopt.rewrite.tools.diffusers_attention",
    "diffusers.hooks.hooks": "fisopt.rewrite.tools.diffusers_hooks",
    "torch.distributed.fsdp": "fisopt.rewrite.tools.fsdp",
}
"""Packages, or modules of them, and who knows what they leave in a model."""


class Tool:
    """What a package leaves in models; each method says nothing where it is not overridden."""

    def settle(self, model: nn.Module) -> None:
        """Do to a model what its layers would do to themselves at their next call."""
        del model

    def check(self, model: nn.Module) -> None:
        """Raise an InputError for a model in a state that no graph can be captured in."""
        del model

    def composites(self) -> Mapping[OpOverload, Callable[..., Any]]:
        """The operators of the package that are written in others, each with how."""
        return {}

    def traced(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, a model is in a form that can be traced; only tracing may happen inside."""
        del model
        return nullcontext()

    def place(self, module: nn.Module, name: str) -> Place | None:
        """Where a tensor is held that a traced graph reads from a module by a name."""
        del module, name
        return None

    def follows(self, module: nn.Module, name: str) -> bool:
        """Whether a weight of a class of the package can be traced, though torch does not know."""
        del module, name
        return False

    def reads(self, module: nn.Module) -> Mapping[str, Read]:
        """The attributes of a module of which a graph depends on a part, and what that is."""
        del module
        return {}

    def aside(self, model: nn.Module) -> frozenset[str]:
        """The attributes of a whole model that the package keeps for itself."""
        del model
        return frozenset()

    def inputs(self, model: nn.Module, named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a forward call by name, with numbers that may change as tensors."""
        del model
        return named

    def acting(self, module: nn.Module) -> tuple[str, ...]:
        """The adapters that change what a layer returns."""
        del module
        return ()


def tools() -> Iterator[Tool]:
    """The tools whose packages this process has imported."""
    for package, file in _FILES.items():
        if package in sys.modules:
            yield _tool(file)


@cache
def _tool(file: str) -> Tool:
    found: Tool = importlib.import_module(file).TOOL
    return found


def settle(model: nn.Module) -> None:
    """Do to a model what its layers would do to themselves at their next call."""
    for tool in tools():
        tool.settle(model)


def read_by_graphs(module: nn.Module) -> dict[str, Read]:
    """The attributes of a module of which a graph depends on a part, and what that is."""
    return {name: read for tool in tools() for name, read in tool.reads(module).items()}


def aside(model: nn.Module) -> frozenset[str]:
    """The attributes of a whole model that tools keep for themselves."""
    return frozenset[str]().union(*(tool.aside(model) for tool in tools()))


@contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in a form that can be traced, as every tool gives it."""
    with ExitStack() as stack:
        for tool in tools():
            stack.enter_context(tool.traced(model))
        yield


@contextmanager
def exchanged(held: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, a dict holds a value under a name; on leaving what it held before."""
    before = {name: held[name]} if name in held else {}
    held[name] = value
    try:
        yield
    finally:
        held.pop(name)
        held.update(before)
