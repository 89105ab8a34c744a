"""Linears in FP8: rows of activations and of weights as float8_e4m3fn, with a scale each.

Plain operators, so that Inductor computes the scales where it computes the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisopt.errors import LoweringError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
_TINY = 1e-12
"""Instead of the scale of a row of zeros."""
NEEDED = (8, 9)
"""The first CUDA capability that multiplies FP8."""


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row to the range of e4m3 and round it.

    Shapes: x [M, K]; results [M, K] float8_e4m3fn and [M, 1] float32, whose product is about x.
    A row with an infinity or a NaN becomes NaN.
    """
    scale = (x.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=_TINY)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def product(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """A linear of what `quantised` made, by the FP8 units of a GPU.

    Shapes: rows [M, K], row_scale [M, 1], weight [N, K], weight_scale [1, N], bias [N];
        result [M, N] in ``dtype``.
    """
    fused = bias if dtype == torch.bfloat16 else None
    out = torch._scaled_mm(
        rows,
        weight.t(),
        row_scale,
        weight_scale,
        bias=fused,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).to(dtype)
    return out if bias is None or bias is fused else out + bias


def simulated(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The same in float32, on any device; see `product`."""
    out = (rows.float() @ weight.float().t()) * row_scale * weight_scale
    return (out if bias is None else out + bias.float()).to(dtype)


def lacks(device: torch.device) -> str | None:
    """Why a device does not multiply FP8, None if it does."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"the model is on {device}"
    got = torch.cuda.get_device_capability(device)
    if got >= NEEDED:
        return None
    return f"{torch.cuda.get_device_name(device)} (sm_{got[0]}{got[1]}) does not"


def check_device(device: torch.device) -> None:
    """Insist on a GPU that multiplies FP8.

    Raises:
        LoweringError: it is none, or it cannot.
    """
    if (what := lacks(device)) is not None:
        raise LoweringError(
            "linear='fp8' needs a GPU that multiplies FP8, sm_89 (Ada, Hopper) or newer; "
            f"{what}. Leave it out, move the model first, or pass linear='fp8-simulated' for the "
            "same numbers without the speed"
        )
