"""bitsandbytes: linears of four bits, unpacked by its own operators and multiplied by torch's."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from bitsandbytes import functional as bnb
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn
from torch.nn import functional

from fisopt.rewrite.tools.plain import plain
from fisopt.rewrite.tools.tool import Place, Tool, exchanged

_WEIGHT, _BUFFER = "weight", "fisopt_quant_state_"
_STATE = ("absmax", "code", "offset", "state2.absmax", "state2.code")
"""The tensors that the state of a weight holds, which are no weights of the model."""


class BitsAndBytes(Tool):
    """The four-bit linears of bitsandbytes; those of eight bits look for outliers in all tokens."""

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, weights are plain bytes, and what belongs to them are buffers."""
        with ExitStack() as stack:
            for layer in model.modules():
                if self.follows(layer, _WEIGHT):
                    held = dict(_Packed(layer))
                    stored = nn.Parameter(held.pop(_WEIGHT), requires_grad=False)
                    run = partial(_run, layer, _Packed(layer).state)
                    stack.enter_context(exchanged(vars(layer), "forward", run))
                    stack.enter_context(exchanged(layer._parameters, _WEIGHT, stored))
                    for name, tensor in held.items():
                        stack.enter_context(exchanged(layer._buffers, name, tensor))
            yield

    def place(self, module: nn.Module, name: str) -> Place | None:
        """The bytes of a weight, or a tensor of its state."""
        if not self.follows(module, _WEIGHT):
            return None
        held = _Packed(module)
        return (held, name) if name in set(held) else None

    def follows(self, module: nn.Module, name: str) -> bool:
        """Whether a weight is packed as it was stored, and not yet for one kind of processor."""
        weight: Any = module._parameters.get(name)
        known = isinstance(module, Linear4bit) and isinstance(weight, Params4bit)
        state = weight.quant_state if known else None
        return state is not None and not getattr(state, "packing_format_for_cpu", False)


class _Packed(Mapping[str, Tensor]):
    """The weight that a layer holds then, and the tensors of its state, by name."""

    def __init__(self, layer: nn.Module) -> None:
        self._held = layer._parameters
        self._paths = {
            _BUFFER + path.replace(".", "_"): path
            for path in _STATE
            if isinstance(_read(self.state, path), Tensor)
        }

    @property
    def state(self) -> Any:
        """The state of the weight."""
        weight: Any = self._held[_WEIGHT]
        return weight.quant_state

    def __getitem__(self, name: str) -> Tensor:
        if name == _WEIGHT:
            weight: Any = self._held[_WEIGHT]
            return plain(weight)
        tensor: Tensor = _read(self.state, self._paths[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter((_WEIGHT, *self._paths))

    def __len__(self) -> int:
        return 1 + len(self._paths)


def _read(state: Any, path: str) -> Any:
    try:
        return operator.attrgetter(path)(state)
    except AttributeError:
        return None


def _run(layer: Any, state: Any, inputs: Tensor) -> Tensor:
    """What a linear computes where it is traced: its state is read from the buffers."""
    traced = copy.copy(state)
    traced.state2 = copy.copy(state.state2)
    for path in _STATE:
        if (tensor := layer._buffers.get(_BUFFER + path.replace(".", "_"))) is not None:
            owner, _, name = path.rpartition(".")
            setattr(getattr(traced, owner) if owner else traced, name, tensor)
    if not layer.compute_type_is_set:
        layer.set_compute_type(inputs)
    x = inputs if layer.compute_dtype is None else inputs.to(layer.compute_dtype)
    weight = bnb.dequantize_4bit(layer.weight, traced).to(x.dtype)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, weight, bias).to(inputs.dtype)


TOOL = BitsAndBytes()
