"""Rows: gathering entries of a tensor whole."""

from __future__ import annotations

from torch import Tensor


def take(x: Tensor, *places: Tensor) -> Tensor:
    """``x[places]``, by one index of whole rows, which devices copy fastest.

    A tensor in another order of memory is copied once; what it is traced as would otherwise hold
    for that order alone.

    Shapes: x [..., D]; places: one int64 tensor for each dimension but the last, which broadcast
        together.  Result: their shape, then D, contiguous.
    """
    width = x.shape[-1]
    if 0 in x.shape:
        return x[places]
    first, *others = places
    for size, place in zip(x.shape[1:], others, strict=False):
        first = first * size + place
    return x.reshape(-1, width)[first.flatten()].view(*first.shape, width)
