"""What a tile-sparse attention walks: which block of queries starts where, and its key blocks.

Both lists have a length that needs no value of the plan, so that nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisopt.codegen.kernels.plan_cache import once_a_plan


def lists_of(
    rows: Tensor, keys: Tensor, tokens: tuple[int, int], blocks: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`work_list` and `key_blocks`, made once a plan and tile choice.

    Args:
        rows: of the plan.
        keys: of the plan.
        tokens: entries of the queries and of the keys.
        blocks: queries and keys of a block.
    """

    def make() -> tuple[Tensor, Tensor]:
        work = work_list(rows, keys, tokens[0], blocks[0])
        return work, key_blocks(keys, tokens[1], blocks[1])

    return once_a_plan(rows, keys, (tokens, blocks), make)


def work_list(rows: Tensor, keys: Tensor, tokens: int, block: int) -> Tensor:
    """Cut the groups of a plan into blocks of queries, those with most keys first.

    Shapes: rows [groups + 1]; keys [heads or 1, groups, ranges, 2]; see `TilePlan`.

    Returns:
        [heads or 1, tokens // block + groups, 2] int32: group and first query of each block, and
        a group of -1 behind the last.
    """
    count = (rows.diff() + block - 1) // block  # [groups]
    load = (keys[..., 1] - keys[..., 0]).sum(-1)  # [heads or 1, groups]
    order = load.argsort(dim=-1, descending=True, stable=True)
    slot, within = _walk(count[order], tokens // block + count.shape[0])
    inside = slot < count.shape[0]
    group = order.gather(-1, slot.clamp(max=count.shape[0] - 1))
    first = rows[group] + within * block
    return torch.stack([torch.where(inside, group, -1), first], -1).int()


def key_blocks(keys: Tensor, tokens: int, block: int) -> Tensor:
    """Cut the key ranges of each group into one list of blocks, whole ones first.

    Shapes: keys [heads or 1, groups, ranges, 2]; see `TilePlan`.

    Returns:
        [heads or 1, groups, 1 + tokens // block + ranges, 2] int32: first how many blocks are
        whole and how many there are, then start and end of each; what follows the last is not
        read.
    """
    start, end = keys.unbind(-1)
    whole = (end - start) // block
    middle = start + whole * block
    start, end = torch.cat([start, middle], -1), torch.cat([middle, end], -1)
    count = torch.cat([whole, (end > start)[..., whole.shape[-1] :]], -1)
    slot, within = _walk(count, tokens // block + whole.shape[-1])
    slot = slot.clamp(max=count.shape[-1] - 1)
    first = start.gather(-1, slot) + within * block
    last = torch.minimum(first + block, end.gather(-1, slot))
    size = torch.stack([whole.sum(-1), count.sum(-1)], -1)
    return torch.cat([size[..., None, :], torch.stack([first, last], -1)], -2).int()


def _walk(count: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which of some runs each of ``length`` positions is in, and its position in that run.

    Shapes: count [..., runs]; results [..., length], as many as there are runs behind the last.
    """
    ends = count.cumsum(-1)
    place = torch.arange(length, device=count.device).expand(*ends.shape[:-1], -1).contiguous()
    slot = torch.searchsorted(ends, place, right=True)
    held = slot.clamp(max=count.shape[-1] - 1)
    return slot, place - (ends - count).gather(-1, held)
