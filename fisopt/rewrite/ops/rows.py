"""Rows: gathering entries of a tensor whole, whatever their order in memory."""

from __future__ import annotations

from torch import Tensor


def take(x: Tensor, *places: Tensor) -> Tensor:
    """``x[places]``, by one index into x's memory: devices copy whole rows fastest.

    Shapes: x [..., D]; places: one int64 tensor for each dimension but the last, which broadcast
        together.  Result: their shape, then D, contiguous.
    """
    width = x.shape[-1]
    if 0 in x.shape:
        return x[places]
    if x.stride(-1) != 1 or any(stride % width for stride in x.stride()[:-1]):
        x = x.contiguous()
    steps = [stride // width for stride in x.stride()[:-1]]
    last = sum((size - 1) * step for size, step in zip(x.shape, steps, strict=False))
    rows = x.as_strided((last + 1, width), (width, 1))
    first, *others = (place * step for place, step in zip(places, steps, strict=True))
    for other in others:
        first = first + other
    return rows[first.flatten()].view(*first.shape, width)
