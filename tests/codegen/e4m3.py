"""FP8 written out in float64: e4m3 from its exponents, and linears of numbers rounded to it."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(x: Tensor) -> Tensor:
    """The nearest number with 3 bits after the first, an exponent from -6 to 8, up to 448."""
    exponent = x.abs().clamp(min=2.0**-6).log2().floor()
    step = torch.exp2(exponent - 3)
    return ((x / step).round() * step).clamp(-448, 448)


def scaled(x: Tensor) -> Tensor:
    """Each row rounded with a scale of its own, which makes its largest number 448."""
    size = x.abs().amax(-1, keepdim=True)
    scale = torch.where(size > 0, size.float() / 448, 1.0)
    return rounded((x.float() / scale).double()) * scale.double()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear of rounded activations [..., K] and weights [N, K], in float64."""
    out = scaled(x) @ scaled(weight).t()
    return out if bias is None else out + bias.double()
