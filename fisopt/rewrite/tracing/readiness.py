"""What keeps a model from capture: training, hooks, forwards that its class does not define."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fisopt.errors import InputError
from fisopt.rewrite.tools.diffusers_hooks import OFFLOAD, is_hooked, refused
from fisopt.rewrite.tools.fsdp import gathers
from fisopt.rewrite.tools.tool import HOOKS, tools

ROOT_HOOK = ("_hf_hook", "_old_forward", "forward")
"""What accelerate leaves on a hooked module; on the whole model it runs around the graph."""

INSTALLED = {"site-packages", "dist-packages"}


GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
"""Where torch keeps the hooks of every module's forward call."""


def check_model(model: nn.Module, hidden: Mapping[str, nn.Module] | None = None) -> None:
    """Refuse a model in a state that a graph cannot be captured in.

    Args:
        model: the model.
        hidden: modules that it reaches otherwise than as layers, by path.

    Raises:
        InputError: it is in training mode; hooks that a graph does not run replace the forward
            calls of its layers (a step cache, parallelism, offloading of single layers) or run
            around every module; a ``forward`` was exchanged on a layer or on its class; or a weight
            is of a class that export does not follow.
    """
    if model.training:
        raise InputError(
            f"{type(model).__name__} is in training mode, where runs may differ: call "
            "model.eval() first; gradients flow there too"
        )
    if everywhere := list(_everywhere()):
        raise InputError(
            f"{type(model).__name__}: {', '.join(everywhere)} is a hook of every module "
            "(register_module_forward_hook), which no captured graph runs; remove it, or hook "
            "the layers that you mean"
        )
    for tool in tools():
        tool.check(model)
    for path, module in (*model.named_modules(), *(hidden or {}).items()):
        where = f"{type(model).__name__}: {path or 'the model'}"
        if hooks := list(_hooks(module)):
            raise InputError(
                f"{where} runs under hooks ({'; '.join(hooks)}), which do not reach a captured "
                "graph; remove them first. For a step cache call disable_cache() and add "
                "StepCache to the passes; for parallelism add SequenceParallel; for an "
                "offloading pipeline call remove_all_hooks()"
            )
        if foreign := foreign_forward(module):
            raise InputError(
                f"{where} runs a forward that its class does not define: {foreign}. A captured "
                "graph would not see what it keeps between calls, so it cannot be combined with "
                "fisopt; put the class's own forward back (and add StepCache to the passes if "
                "this was a step cache), or define this one in a subclass"
            )
        if odd := _odd_weight(module):
            raise InputError(
                f"{where} holds {odd}, a tensor class that torch.export takes for a plain tensor "
                "of the numbers as they are stored; dequantise the model first (diffusers: "
                "model.dequantize()), or quantise its linears with torchao, quanto, GGUF or the "
                "four bits of bitsandbytes"
            )


def _odd_weight(module: nn.Module) -> str | None:
    """Name a weight of a class that export does not follow, such as one of packed numbers."""
    for name, x in (*module._parameters.items(), *module._buffers.items()):
        theirs = type(x).__module__.partition(".")[0] not in ("torch", "builtins")
        if x is None or not theirs or is_traceable_wrapper_subclass(x):
            continue
        if not any(tool.follows(module, name) for tool in tools()):
            return f"{name!r}, a {type(x).__module__}.{type(x).__qualname__}"
    return None


def _everywhere() -> Iterator[str]:
    """The hooks that run around every module; those of torch only take note of the call."""
    for name in GLOBAL_HOOKS:
        for hook in getattr(nn.modules.module, name).values():
            if not str(getattr(hook, "__module__", "")).startswith("torch."):
                yield _name(hook)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside of what torch.compile returned for it; any other as it is."""
    inner = getattr(model, "__dict__", {}).get("_modules", {}).get("_orig_mod")
    return inner if inner is not None and type(model).__module__.startswith("torch.") else model


def unhooked(model: nn.Module) -> nn.Module:
    """The model without what runs around its forward call; everything else is shared.

    Its hooks, and those of accelerate that move it, run at every call and are no part of a graph.
    """
    plain: nn.Module = object.__new__(type(model))
    left_out = (*ROOT_HOOK, "_compiled_call_impl")
    held = {name: value for name, value in vars(model).items() if name not in left_out}
    held |= {name: OrderedDict() for name in HOOKS}
    object.__setattr__(plain, "__dict__", held)
    return plain


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run around a module's forward call, other than such that gather weights."""
    hooks = (hook for name in HOOKS for hook in vars(module).get(name, {}).values())
    return not all(map(gathers, hooks))


def _hooks(module: nn.Module) -> Iterator[str]:
    """The hooks of diffusers and accelerate on one module that no graph can run."""
    yield from refused(module)
    for hook in _accelerate_hooks(vars(module).get("_hf_hook")):
        if getattr(hook, "offload", False) is True:
            yield f"offloading of single layers: {OFFLOAD}"


def _accelerate_hooks(hook: Any) -> Iterable[Any]:
    """A hook of accelerate, or those that a sequence of them holds."""
    return hook.hooks if isinstance(getattr(hook, "hooks", None), (list, tuple)) else (hook,)


def foreign_forward(module: nn.Module) -> str | None:
    """Name the ``forward`` that a module runs if it is not the one that its class defines.

    A hook of accelerate that moves what enters and what leaves is no other ``forward``, and
    neither is a compiled one, nor one that its class decorates.
    """
    cls = type(module)
    if isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)):
        return None  # made from a graph, its forward is not written in a class
    if uncompiled(module) is not module:
        return None
    held = vars(module).get("forward")
    if (
        held is not None
        and "_hf_hook" not in vars(module)
        and _bare(held) is not _bare(cls.forward)
        and not is_hooked(module, held)
    ):
        return f"{_name(held)} on the instance"
    owner = next((c for c in cls.__mro__ if "forward" in vars(c)), nn.Module)
    return None if owner is nn.Module else _foreign_on(owner, vars(owner)["forward"])


@lru_cache(maxsize=1024)
def _foreign_on(owner: type, forward: Any) -> str | None:
    """Name the ``forward`` of a class if the class does not define it."""
    wrapped, layers = _bare(forward), 0
    while hasattr(wrapped, "__wrapped__"):
        layers += not _is_of_library(wrapped, owner)
        wrapped = _bare(wrapped.__wrapped__)
    own = (owner.__module__, f"{owner.__qualname__}.forward")
    if (getattr(wrapped, "__module__", ""), getattr(wrapped, "__qualname__", "")) != own:
        return f"{_name(wrapped)} on the class {owner.__name__}"
    if layers and layers > _decorators(owner, wrapped):
        return f"a wrapper of {_name(wrapped)} on the class {owner.__name__}"
    return None


def _is_of_library(wrapper: Any, owner: type) -> bool:
    """Whether the library of a class wraps its forwards itself, from another module of its own.

    A library is installed; a project in which a class and what patches it stand is none.
    """
    held = getattr(wrapper, "__globals__", {})
    home, file = str(held.get("__name__", "")), str(held.get("__file__", ""))
    installed = not INSTALLED.isdisjoint(Path(file).parts)
    same = home.split(".")[0] == owner.__module__.split(".")[0]
    return installed and same and home != owner.__module__


def _decorators(*written: Any) -> int:
    """How many decorators stand over a class and its function, as many as need be if unknown."""
    try:
        parsed = [ast.parse(textwrap.dedent(inspect.getsource(x))).body[0] for x in written]
    except (OSError, TypeError, SyntaxError):
        return sys.maxsize
    return sum(len(getattr(statement, "decorator_list", ())) for statement in parsed)


def _bare(function: Any) -> Any:
    """The function under a binding and under compilation."""
    while True:
        if isinstance(function, MethodType):
            function = function.__func__
        elif hasattr(function, "_torchdynamo_orig_callable"):
            function = function._torchdynamo_orig_callable
        else:
            return function


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}.{name}"
