"""The plan of a tile-sparse attention: for each group of queries the key ranges that it reads.

A sequence is cut into groups: the text before the video, each frame, the text behind it.  Text is
global: it sees everything and is seen by all.  All queries of a group read the same keys, so a
kernel cuts each group into query blocks of its own size, the last one ragged, and no block ever
holds queries of two kinds.  Everything is computed from the table of frames: no tensor has a
dimension of the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisopt.errors import OptionError
from fisopt.rewrite.axes import FrameAxis


@dataclass(frozen=True)
class TilePlan:
    """What a kernel reads, in tokens.

    Attributes:
        rows: [groups + 1] int32; group g holds the queries ``rows[g]`` to ``rows[g + 1]``.
        keys: [heads or 1, groups, ranges, 2] int32; start and end of the key ranges of a group,
            increasing; (0, 0) where a group has fewer ranges than others.
        pairs: kept (query, key) pairs, summed over the first dimension of ``keys``.
        density: kept share of all pairs, in (0, 1].
    """

    rows: Tensor
    keys: Tensor
    pairs: int
    density: float


def tile_plan(table: Tensor, queries: FrameAxis, keys: FrameAxis) -> TilePlan:
    """Build the plan of an attention from a table of kept tiles, on the table's device.

    Args:
        table: bool [F, F'] or [heads, F, F'], kept tiles of F query and F' key frames.
        queries: where the F frames are in the query sequence.
        keys: where the F' frames are in the key sequence.

    Raises:
        OptionError: the table does not fit, or leaves the queries of a frame with no key.
    """
    shape = (queries.frames, keys.frames)
    if table.dtype != torch.bool or table.shape[-2:] != shape or table.ndim not in (2, 3):
        raise OptionError(
            f"a table of {shape[0]} query and {shape[1]} key frames must be bool "
            f"[{shape[0]}, {shape[1]}] or [heads, {shape[0]}, {shape[1]}], got {table.dtype} "
            f"{list(table.shape)}"
        )
    if queries.outer != 1 or keys.outer != 1:
        raise OptionError(
            f"frames of the sequence must be contiguous, got {queries} queries and {keys} keys"
        )
    kept = with_text(table if table.ndim == 3 else table[None], queries, keys)
    empty = (~kept.any(-1)).nonzero().tolist()
    if empty:
        head, group = empty[0]
        where = f"frame {group - (queries.before > 0)}" + (f" of head {head}" if head else "")
        raise OptionError(
            f"the mask leaves the queries of {where} with no key; let every frame see one frame "
            "or more"
        )
    rows = bounds(queries, table.device)
    columns = bounds(keys, table.device)
    pairs = int((kept.long() * rows.diff()[:, None] * columns.diff()).sum())
    total = kept.shape[0] * queries.size * keys.size
    return TilePlan(rows.int(), _ranges(kept, columns).int(), pairs, pairs / total)


def with_text(table: Tensor, queries: FrameAxis, keys: FrameAxis) -> Tensor:
    """Add the groups of text, which see and are seen, to a table [..., F, F']."""
    sides = (keys.before > 0, keys.after > 0, queries.before > 0, queries.after > 0)
    return pad(table, tuple(map(int, sides)), value=True)


def bounds(axis: FrameAxis, device: torch.device) -> Tensor:
    """Where the groups of a sequence start, and its end: [groups + 1] int64."""
    video = torch.arange(axis.frames + 1, device=device) * axis.inner + axis.before
    return pad(pad(video, (int(axis.before > 0), 0)), (0, int(axis.after > 0)), value=axis.size)


def _ranges(kept: Tensor, columns: Tensor) -> Tensor:
    """Join neighbouring kept groups of each row into ranges: [heads, rows, ranges, 2] tokens."""
    edges = pad(kept, (1, 1)).byte().diff(dim=-1)
    starts, ends = edges == 1, edges == 255
    rank = starts.cumsum(-1) - 1
    heads, rows, first = starts.nonzero(as_tuple=True)
    place = (heads, rows, rank[heads, rows, first])
    last = ends.nonzero(as_tuple=True)[2]
    result = columns.new_zeros(*kept.shape[:2], int(rank.max()) + 1, 2)
    result[place] = torch.stack([columns[first], columns[last]], dim=-1)
    return result


def block_density(table: Tensor, axis: FrameAxis, block: int = 128) -> float:
    """Share of the block x block squares of the score matrix that touch a kept tile.

    What a kernel with blocks of one size computes if its blocks take no notice of frames.

    Args:
        table: bool [F, F] or [heads, F, F], kept tiles.
        axis: where the frames are in the sequence, of queries and keys alike.
        block: tokens a side.
    """
    edges = bounds(axis, table.device)
    first = torch.arange(0, axis.size, block, device=table.device)[:, None]
    touched = ((edges[:-1] < first + block) & (edges[1:] > first)).float()
    kept = touched @ with_text(table, axis, axis).float() @ touched.T
    return float((kept > 0).float().mean())
