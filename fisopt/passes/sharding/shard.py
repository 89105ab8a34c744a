"""Shards: which dimension of a value is divided among ranks, and which entries a rank holds.

A rank holds ``ceil(M / ranks)`` of M entries; where the ranks do not divide them, the last entry
stands in the places that are left over, so that all ranks run one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fisopt.rewrite.axes import FrameAxis


@dataclass(frozen=True)
class Shard:
    """One dimension of which every rank holds a part.

    Attributes:
        dim: the dimension.
        axis: where the entries that are divided lie in it; its ``frames`` is their number.  What
            lies before and after them, such as text, is whole on every rank.
    """

    dim: int
    axis: FrameAxis

    def local(self, ranks: int) -> FrameAxis:
        """The same axis over the part of one rank."""
        return self.axis.at(part(self.axis.frames, ranks))

    def sizes(self, sizes: Sequence[int], ranks: int) -> list[int]:
        """The sizes of a rank's part, from those of the whole value."""
        return [*sizes[: self.dim], self.local(ranks).size, *sizes[self.dim + 1 :]]


def part(count: int, ranks: int) -> int:
    """How many of some entries a rank holds."""
    return -(-count // ranks)


def positions(axis: FrameAxis, ranks: int) -> torch.Tensor:
    """Where the entries of each rank lie in the whole dimension, int64 [ranks, entries]."""
    held = part(axis.frames, ranks)
    entries = torch.arange(ranks * held).clamp_(max=axis.frames - 1).reshape(ranks, 1, held, 1)
    rows = torch.arange(axis.outer).reshape(-1, 1, 1) * axis.frames
    video = (rows + entries) * axis.inner + torch.arange(axis.inner) + axis.before
    text = torch.arange(axis.before), torch.arange(axis.size - axis.after, axis.size)
    head, tail = (x.expand(ranks, -1) for x in text)
    return torch.cat([head, video.reshape(ranks, -1), tail], 1)


def scaled(axis: FrameAxis | None, size: int, shard: Shard, ranks: int) -> FrameAxis | None:
    """The frames of a divided dimension on one rank, None if they are not said by an axis."""
    if axis is None:
        return None
    held, count = part(shard.axis.frames, ranks), shard.axis.frames
    if shard.axis.inner % (axis.frames * axis.inner):  # an entry is less than a video
        found = replace(axis, inner=axis.inner * held // count)
    else:
        found = replace(axis, outer=axis.outer * held // count)
    return found if found.size == size else None
