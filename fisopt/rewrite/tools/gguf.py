"""GGUF: weights of packed bytes in the linears of diffusers, unpacked by an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.quantizers.gguf import utils as gguf
from torch import Tensor, nn
from torch.nn import functional

from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.tools.plain import plain
from fisopt.rewrite.tools.tool import Place, Tool, exchanged

_WEIGHT = "weight"
_SIZES: Any = gguf.GGML_QUANT_SIZES
_UNPACK: Any = gguf.dequantize_functions


@operator("fisopt::unpack_gguf", opaque=True, gradient="zero")
def unpack_gguf(weight: Tensor, kind: int) -> Tensor:
    """The numbers of a weight: bytes [N, B] of a GGUF type, results [N, K]."""
    block, size = _SIZES[kind]
    packed = weight.view(torch.uint8).reshape(-1, size)
    numbers: Tensor = _UNPACK[kind](packed, block, size)
    return numbers.reshape(weight.shape[0], -1).clone()


class Gguf(Tool):
    """The linears that diffusers makes of a GGUF file."""

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, weights are plain bytes and linears unpack them by the operator."""
        with ExitStack() as stack:
            for layer in model.modules():
                if self.follows(layer, _WEIGHT):
                    weight: Any = layer._parameters[_WEIGHT]
                    run = partial(_run, layer, int(weight.quant_type))
                    stack.enter_context(exchanged(vars(layer), "forward", run))
                    stored = nn.Parameter(plain(weight), requires_grad=False)
                    stack.enter_context(exchanged(layer._parameters, _WEIGHT, stored))
            yield

    def place(self, module: nn.Module, name: str) -> Place | None:
        """The bytes of a weight, as a plain tensor."""
        return (_Bytes(module), name) if self.follows(module, name) else None

    def follows(self, module: nn.Module, name: str) -> bool:
        """Whether a weight is packed, in a layer that unpacks it."""
        weight = module._parameters.get(name)
        layer = isinstance(module, gguf.GGUFLinear)
        return layer and name == _WEIGHT and isinstance(weight, gguf.GGUFParameter)


def _run(layer: Any, kind: int, inputs: Tensor) -> Tensor:
    """What a linear computes where it is traced."""
    weight = unpack_gguf(layer.weight, kind).to(layer.compute_dtype)
    bias = None if layer.bias is None else layer.bias.to(layer.compute_dtype)
    return functional.linear(inputs, weight, bias)


class _Bytes(Mapping[str, Tensor]):
    """The bytes of the weight that a layer holds then."""

    def __init__(self, layer: nn.Module) -> None:
        self._held = layer._parameters

    def __getitem__(self, name: str) -> Tensor:
        weight: Any = self._held[name]
        return plain(weight)

    def __iter__(self) -> Iterator[str]:
        return iter((_WEIGHT,))

    def __len__(self) -> int:
        return 1


TOOL = Gguf()
