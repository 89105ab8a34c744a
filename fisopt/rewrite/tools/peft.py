"""PEFT: what of its adapters a graph depends on, and how its layers are traced."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.errors import InputError, shown
from fisopt.rewrite.tools.peft_strengths import (
    BUFFER,
    OfCall,
    Strength,
    as_buffers,
    is_number,
    open_names,
)
from fisopt.rewrite.tools.tool import Place, Read, Tool, exchanged

_ASIDE = frozenset(
    {
        "peft_config",
        "_hf_peft_config_loaded",
        "lora_scale",
        "_safe_fusing",
        "_prepare_lora_hotswap_kwargs",
    }
)
"""What diffusers keeps on a model of the adapters that it has loaded and fused."""


class Peft(Tool):
    """The layers of PEFT, and how diffusers uses them."""

    def settle(self, model: nn.Module) -> None:
        """Take adapters that are fused and disabled out of the weights."""
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer) and layer.disable_adapters and layer.merged:
                layer.unmerge()

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, strengths are buffers, and those of a whole call multiply them.

        Layers that peft has added are in training mode; those that drop nothing are not, inside.
        """
        strength = OfCall(model)
        with ExitStack() as stack:
            for layer in model.modules():
                if isinstance(layer, BaseTunerLayer) and not _drops(layer):
                    stack.enter_context(exchanged(vars(layer), "training", False))
                if names := open_names(layer):
                    stack.enter_context(as_buffers(layer, names, strength))
            stack.enter_context(strength.patched())
            yield

    def place(self, module: nn.Module, name: str) -> Place | None:
        """Where a strength is, as a tensor."""
        adapter = name.removeprefix(BUFFER)
        if adapter == name or adapter not in open_names(module):
            return None
        return Strength(module, adapter), name

    def reads(self, module: nn.Module) -> Mapping[str, Read]:
        """Of strengths that are inputs a graph depends on the names, of active names on its own."""
        if not isinstance(module, BaseTunerLayer):
            return {}
        reads = {"_active_adapter": _among(_held_by(module))}
        if names := open_names(module):
            reads["scaling"] = _kinds(frozenset(names))
        return reads

    def aside(self, model: nn.Module) -> frozenset[str]:
        """What no forward call reads."""
        return _ASIDE if hasattr(type(model), "load_lora_adapter") else frozenset()

    def inputs(self, model: nn.Module, named: dict[str, Any]) -> dict[str, Any]:
        """The strength of a whole call as a tensor.

        Raises:
            InputError: it is a tensor of several numbers.
        """
        argument = _argument(type(model).forward)
        given = named.get(argument or "")
        if argument is None or not isinstance(given, Mapping):
            return named
        scale = given.get("scale")
        if not isinstance(scale, (int, float, Tensor)) or not _allopen_names(model):
            return named
        if isinstance(scale, Tensor) and scale.numel() != 1:
            raise InputError(
                f"{argument}={{'scale': ...}} of {type(model).__name__}: got {shown(scale)}, "
                "wanted one number for all layers"
            )
        held = [x for x in pytree.tree_leaves(dict(named)) if isinstance(x, Tensor) and x.ndim]
        device = held[0].device if held else torch.device("cpu")
        value = (
            scale.detach().reshape(()).to(device, torch.float32)
            if isinstance(scale, Tensor)
            else torch.full((), float(scale), device=device)
        )
        return {**named, argument: {**given, "scale": value}}

    def acting(self, module: nn.Module) -> tuple[str, ...]:
        """The adapters that are fused into a layer, or else active in it."""
        if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
            return ()
        return tuple(module.merged_adapters) or _among(_held_by(module))(module.active_adapters)


def _held_by(layer: BaseTunerLayer) -> frozenset[str]:
    """The adapters that a layer has: a pipeline activates those of all its models in each."""
    parts = (getattr(layer, name, {}) for name in layer.adapter_layer_names)
    return frozenset(name for part in parts for name in part)


@lru_cache(maxsize=64)
def _among(held: frozenset[str]) -> Read:
    """Reads which of some names are those of adapters that a layer has."""

    def read(active: str | Sequence[str]) -> tuple[str, ...]:
        names = [active] if isinstance(active, str) else active
        return tuple(name for name in names if name in held)

    return read


def _drops(layer: Any) -> bool:
    """Whether a layer drops some of its numbers in training mode."""
    kinds = (getattr(layer, name, {}) for name in ("rank_dropout", "module_dropout"))
    shares = [share for kind in kinds for share in kind.values()]
    return any(shares) or any(isinstance(m, nn.Dropout) and m.p for m in layer.modules())


def _allopen_names(model: nn.Module) -> bool:
    return all(len(open_names(x)) == len(vars(x).get("scaling", "?")) for x in _layers(model))


def _layers(model: nn.Module) -> Iterator[Any]:
    """The layers of a model that have adapters; what those are made of is not walked through."""
    left: list[Any] = [model]
    while left:
        module = left.pop()
        inside = vars(module)["_modules"]
        if isinstance(module, BaseTunerLayer):
            yield module
            inside = {"base_layer": inside.get("base_layer")}
        left.extend(x for x in inside.values() if x is not None)


@lru_cache(maxsize=64)
def _kinds(open_names: frozenset[str]) -> Read:
    """Reads strengths: of those that are inputs, that they are there."""

    def read(scaling: Any) -> tuple[Any, ...]:
        return tuple(
            (name, ...) if name in open_names and is_number(value) else (name, value)
            for name, value in scaling.items()
        )

    return read


@lru_cache(maxsize=64)
def _argument(forward: Any) -> str | None:
    """The argument in which a forward of diffusers takes the strength of a whole call."""
    while forward is not None:
        held = inspect.getclosurevars(forward).nonlocals if inspect.isfunction(forward) else {}
        if getattr(forward, "__module__", "") and isinstance(held.get("kwargs_name"), str):
            return str(held["kwargs_name"])
        forward = getattr(forward, "__wrapped__", None)
    return None


TOOL = Peft()
