"""Strengths of the adapters of PEFT: plain numbers that its layers hold, as inputs of a graph.

While a model is traced, each strength is a buffer of its layer.  At a run the layer is asked for
it, so that `set_adapters`, a hot-swap and ``attention_kwargs={"scale": ...}`` need no new graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from fisopt.rewrite.tools.tool import exchanged

BUFFER = "fisopt_scaling_"
"""What the name of a strength that is a buffer begins with; the adapter's follows."""


class OfCall:
    """The strength of a whole call, ``attention_kwargs={"scale": ...}``, while it is traced."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {id(m) for m in model.modules()}
        self.now: Any = None

    def times(self, strength: Tensor) -> Tensor:
        """A strength in this call []."""
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

    def __init__(self, layer: nn.Module, names: tuple[str, ...], of_call: OfCall) -> None:
        super().__init__(layer.scaling)  # type: ignore[arg-type]
        self._buffers, self._open, self._of_call = layer._buffers, names, of_call

    def __getitem__(self, adapter: str) -> Any:
        if adapter not in self._open:
            return super().__getitem__(adapter)
        held = self._buffers[BUFFER + adapter]
        assert held is not None
        return self._of_call.times(held)


@contextmanager
def as_buffers(layer: nn.Module, names: tuple[str, ...], of_call: OfCall) -> Iterator[None]:
    """Inside, the strengths of some adapters of a layer are buffers of it."""
    with ExitStack() as stack:
        for name in names:
            buffer = Strength(layer, name)[name]
            stack.enter_context(exchanged(layer._buffers, BUFFER + name, buffer))
        scaling = _Traced(layer, names, of_call)
        stack.enter_context(exchanged(vars(layer), "scaling", scaling))
        yield


class Strength(Mapping[str, Tensor]):
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


def open_names(module: nn.Module) -> tuple[str, ...]:
    """The adapters of a layer whose strengths can be tensors: the layer multiplies by them."""
    if not isinstance(module, (LoraLayer, LoKrLayer)) or isinstance(module, ParamWrapper):
        return ()
    other = getattr(module, "lora_variant", {})
    scaling = vars(module)["scaling"]
    return tuple(k for k, v in scaling.items() if k not in other and is_number(v))


def is_number(value: Any) -> bool:
    """Whether a strength is one number, plain or in a tensor."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
