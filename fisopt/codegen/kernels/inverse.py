"""The inverse of a match: for each kept entry those that restore from it."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse(origin: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each kept entry the entries that restore from it, in one list (CSR).

    Shapes: origin [..., S], positions in [0, kept).

    Returns:
        order [R, S] int32: all entries, those of one kept entry side by side; owner [R, S]
        int32: the kept entry of each; starts [R, kept + 1] int32: where a kept entry's begin.
    """
    rows = origin.reshape(-1, origin.shape[-1])
    owner, order = rows.sort(dim=-1, stable=True)
    place = torch.arange(kept + 1, device=origin.device, dtype=owner.dtype)
    starts = torch.searchsorted(owner, place.expand(rows.shape[0], -1).contiguous())
    return order.int(), owner.int(), starts.int()
