"""The work list of a tile-sparse attention: which block of queries starts where."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_LISTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def work_list_of(rows: Tensor, keys: Tensor, tokens: int, block: int) -> Tensor:
    """`work_list`, made once a plan and block size."""
    versions = tuple(0 if x.is_inference() else x._version for x in (rows, keys))
    by_rows = _LISTS.setdefault(keys, WeakTensorKeyDictionary())
    known = by_rows.setdefault(rows, {})
    place = (tokens, block, versions)
    if place not in known:
        known[place] = work_list(rows, keys, tokens, block)
    found: Tensor = known[place]
    return found


def work_list(rows: Tensor, keys: Tensor, tokens: int, block: int) -> Tensor:
    """Cut the groups of a plan into blocks of queries, those with most keys first.

    Its length is a bound that needs no value of the plan, so that nothing waits for the device.

    Shapes: rows [groups + 1]; keys [heads or 1, groups, ranges, 2]; see `TilePlan`.

    Returns:
        [heads or 1, tokens // block + groups, 2] int32: group and first query of each block, and
        a group of -1 behind the last.
    """
    count = (rows.diff() + block - 1) // block  # [groups]
    load = (keys[..., 1] - keys[..., 0]).sum(-1)  # [heads or 1, groups]
    order = load.argsort(dim=-1, descending=True, stable=True)
    ends = count[order].cumsum(-1)
    place = torch.arange(tokens // block + count.shape[0], device=rows.device)
    place = place.expand(ends.shape[0], -1).contiguous()
    slot = torch.searchsorted(ends, place, right=True)
    inside = slot < count.shape[0]
    slot = slot.clamp(max=count.shape[0] - 1)
    group = order.gather(-1, slot)
    within = place - ends.gather(-1, slot) + count[group]
    first = rows[group] + within * block
    return torch.stack([torch.where(inside, group, -1), first], -1).int()
