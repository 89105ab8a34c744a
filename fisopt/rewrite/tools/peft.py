"""PEFT: the strengths of adapters, plain numbers that its layers hold, as inputs of a graph.

While a model is traced, each strength is a buffer of its layer.  At a run the layer is asked for
it, so that `set_adapters`, a hot-swap and ``attention_kwargs={"scale": ...}`` need no new graph.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.errors import InputError, shown
from fisopt.rewrite.tools.tool import Place, Read, Tool, exchanged

_BUFFER = "fisopt_scaling_"
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
        strength = _OfCall(model)
        with ExitStack() as stack:
            for layer in model.modules():
                if isinstance(layer, BaseTunerLayer) and not _drops(layer):
                    stack.enter_context(exchanged(vars(layer), "training", False))
                if names := _open(layer):
                    stack.enter_context(_as_buffers(layer, names, strength))
            stack.enter_context(strength.patched())
            yield

    def place(self, module: nn.Module, name: str) -> Place | None:
        """Where a strength is, as a tensor."""
        adapter = name.removeprefix(_BUFFER)
        if adapter == name or adapter not in _open(module):
            return None
        return _Strength(module, adapter), name

    def reads(self, module: nn.Module) -> Mapping[str, Read]:
        """Of strengths that are inputs a graph depends on the names, of active names on its own."""
        if not isinstance(module, BaseTunerLayer):
            return {}
        reads = {"_active_adapter": _among(_held_by(module))}
        if names := _open(module):
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
        if not isinstance(scale, (int, float, Tensor)) or not _all_open(model):
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


class _OfCall:
    """The strength of a whole call, ``attention_kwargs={"scale": ...}``, while it is traced."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {id(m) for m in model.modules()}
        self.now: Any = None

    def times(self, strength: Tensor) -> Tensor:
        return strength if self.now is None else strength * self.now

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Inside, diffusers hands it over instead of multiplying what each layer holds."""
        held: Any = sys.modules.get("diffusers.utils.peft_utils")
        if held is None:
            yield
            return
        before = held.scale_lora_layers, held.unscale_lora_layers
        held.scale_lora_layers = self._setting(before[0], lambda weight: weight)
        held.unscale_lora_layers = self._setting(before[1], lambda _: None)
        try:
            yield
        finally:
            held.scale_lora_layers, held.unscale_lora_layers = before

    def _setting(self, theirs: Callable[..., Any], value: Callable[[Any], Any]) -> Any:
        def call(model: nn.Module, weight: Any = None) -> None:
            mine = isinstance(weight, Tensor) and any(
                id(m) in self._layers for m in model.children()
            )
            if mine:
                self.now = value(weight)
            else:
                theirs(model, weight)

        return call


class _Traced(dict[str, Any]):
    """Strengths of a layer while it is traced: buffers that tracing exchanges for its own."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...], of_call: _OfCall) -> None:
        super().__init__(layer.scaling)  # type: ignore[arg-type]
        self._buffers, self._open, self._of_call = layer._buffers, names, of_call

    def __getitem__(self, adapter: str) -> Any:
        if adapter not in self._open:
            return super().__getitem__(adapter)
        held = self._buffers[_BUFFER + adapter]
        assert held is not None
        return self._of_call.times(held)


@contextmanager
def _as_buffers(layer: nn.Module, names: tuple[str, ...], of_call: _OfCall) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            buffer = _Strength(layer, name)[name]
            stack.enter_context(exchanged(layer._buffers, _BUFFER + name, buffer))
        scaling = _Traced(layer, names, of_call)
        stack.enter_context(exchanged(vars(layer), "scaling", scaling))
        yield


class _Strength(Mapping[str, Tensor]):
    """The strength of an adapter in a layer, as a tensor where the adapter's weights are.

    What a layer holds may be a number or a tensor: a hot-swap writes into the latter.
    """

    def __init__(self, layer: nn.Module, adapter: str) -> None:
        self._held, self._adapter = vars(layer), adapter
        self._device = _device_of(layer, adapter)
        self._known: tuple[Any, Tensor] | None = None

    def __getitem__(self, _: str) -> Tensor:
        value = self._held["scaling"][self._adapter]
        if isinstance(value, Tensor):
            return value.detach().reshape(()).to(self._device, torch.float32)
        if self._known is None or self._known[0] != value:
            self._known = value, torch.full((), float(value), device=self._device)
        return self._known[1]

    def __iter__(self) -> Iterator[str]:
        return iter((self._adapter,))

    def __len__(self) -> int:
        return 1


def _device_of(layer: nn.Module, adapter: str) -> torch.device:
    """Where the weights of an adapter are."""
    weights = (p for name, p in layer.named_parameters() if adapter in name.split("."))
    return next((p.device for p in weights), torch.device("cpu"))


def _open(module: nn.Module) -> tuple[str, ...]:
    """The adapters of a layer whose strengths can be tensors: the layer multiplies by them."""
    if not isinstance(module, (LoraLayer, LoKrLayer)) or isinstance(module, ParamWrapper):
        return ()
    other = getattr(module, "lora_variant", {})
    scaling = vars(module)["scaling"]
    return tuple(k for k, v in scaling.items() if k not in other and _is_number(v))


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


def _all_open(model: nn.Module) -> bool:
    return all(len(_open(x)) == len(vars(x).get("scaling", "?")) for x in _layers(model))


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


@lru_cache(maxsize=64)
def _kinds(open_names: frozenset[str]) -> Read:
    """Reads strengths: of those that are inputs, that they are there."""

    def read(scaling: Any) -> tuple[Any, ...]:
        return tuple(
            (name, ...) if name in open_names and _is_number(value) else (name, value)
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
