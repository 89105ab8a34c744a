"""tile_attention by dense attentions: a few calls of the device's own, merged by log-sum-exp.

The plan is read from the device once, and cut as `fisopt.codegen.kernels.cuts` says; views of
queries, keys and values serve as operands where they can.

Source: merging is that of FlashAttention's blocks, arXiv:2205.14135.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from fisopt.codegen.kernels.cuts import cheapest
from fisopt.codegen.kernels.dense_attention import (
    attend,
    bias_of,
    refuse_dense,
    refuse_operands,
)
from fisopt.codegen.kernels.launching import in_four
from fisopt.codegen.kernels.merge import merge
from fisopt.codegen.kernels.pieces import Cut, Piece, Range, Segment
from fisopt.codegen.kernels.plan_cache import once_a_plan
from fisopt.errors import LoweringError
from fisopt.rewrite.ops import tile_attention as contract
from fisopt.rewrite.ops.tile_groups import take

OP = "fisopt::tile_attention"


def supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> None:
    """Check that dense attentions can make up this call of the contract.

    Raises:
        LoweringError: they cannot; the message names what it got and what is supported.
    """
    del rows, pairs
    if keys.shape[0] != 1:
        raise LoweringError(f"{OP}: {keys.shape[0]} heads have plans of their own; wanted one")
    refuse_operands(OP, query, key, value)
    refuse_dense(OP, query, mask, scale)


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """Run the contract's arguments by the cheapest cut of their plan.

    Where a mask hides every key of a query, also by finite values below -32768, it gets zeros.

    Raises:
        LoweringError: see `supports`; or every backend fails.
    """
    supports(query, key, value, mask, rows, keys, pairs, scale)
    heads = query.shape[:-2].numel()
    cut = once_a_plan(
        rows, keys, (OP, heads), lambda: cheapest(rows.tolist(), keys[0].tolist(), heads)
    )
    return run(cut, query, key, value, mask, scale)


def run(
    cut: Cut,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    hidden: Range | None = None,
) -> Tensor:
    """Run a cut of a plan; operands are those of the contract.

    The mask hides none but the keys ``hidden``, if they are given.
    """
    result = contract.empty_result(query, value)
    q, k, v = (_ready(in_four(x)) for x in (query, key, value))
    out = in_four(result)
    seen = None if mask is None else in_four(mask).expand(*in_four(mask).shape[:-1], k.shape[-2])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if result.numel():
        _Operands(q, k, v, seen, scale, hidden or (0, k.shape[-2])).fill(cut, out)
    return result


def _ready(x: Tensor) -> Tensor:
    """The same as the kernels read it: entries of a head side by side, in units of 16 bytes."""
    unit = 16 // x.element_size()
    strides = [s for s, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    fits = 0 not in strides and not any(s % unit for s in x.stride()[:-1])
    return x if fits and x.stride(-1) == 1 and x.data_ptr() % 16 == 0 else x.contiguous()


Results = list[tuple[Tensor, Tensor]]
"""Of each batch item: [1, h, windows x queries, D], and the log-sum-exp of each query."""


@dataclass
class _Operands:
    """What the attentions of a cut read.

    Shapes: query [B, h, N, D]; key, value [B, h', M, D]; mask [B or 1, h or 1, N or 1, M], which
        hides none but the keys ``hidden``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    hidden: Range
    gathered: dict[tuple[Range, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def fill(self, cut: Cut, out: Tensor) -> None:
        """Run the attentions in the order of the queries; no result is kept longer than needed."""
        last = {part: n for n, one in enumerate(cut.segments) for part, _ in one.parts}
        results: dict[int, Results] = {}
        for n, segment in enumerate(cut.segments):
            for part, _ in segment.parts:
                if part not in results:
                    results[part] = self.attend(cut.pieces[part])
            for item, room in enumerate(out.split(1)):
                self.write(segment, results, item, room)
            results = {part: result for part, result in results.items() if last[part] > n}

    def write(self, segment: Segment, results: dict[int, Results], item: int, out: Tensor) -> None:
        """Write the results of a segment's queries for one batch item."""
        size = segment.end - segment.start
        room = out.narrow(2, segment.start, size)
        found = [(*results[part][item], place) for part, place in segment.parts]
        parts = [part.narrow(2, place, size) for part, _, place in found]
        sums = [lse.narrow(2, place, size) for _, lse, place in found]
        if not parts:
            room.zero_()
        elif len(parts) == 1 and self.mask is None:
            room.copy_(parts[0])
        else:
            merge(room, parts, sums, self.mask is not None, out.is_cuda)

    def attend(self, piece: Piece) -> Results:
        """Run one attention: on the whole batch, or the windows of one item after the other."""
        if piece.windows > 1:
            return [self.windows(piece, item) for item in range(self.query.shape[0])]
        query = _side_by_side(self.query, piece.queries)
        seen = self.mask if piece.sees(self.hidden) else None
        if seen is not None:
            seen = seen if seen.shape[2] == 1 else take(seen, 2, piece.queries)
            seen = take(seen, 3, piece.keys)
        out, lse = attend(query, *self.gather(piece.keys), bias_of(seen, query), self.scale)
        return list(zip(out.split(1), lse.split(1), strict=True))

    def windows(self, piece: Piece, item: int) -> tuple[Tensor, Tensor]:
        """Run the windows of one batch item as a batch, on views."""
        (rows,), (columns,), (step, along) = piece.queries, piece.keys, piece.steps
        query = _windows(self.query[item], piece.windows, (rows, step))
        key, value = (
            _windows(x[item], piece.windows, (columns, along)) for x in (self.key, self.value)
        )
        seen = None
        if self.mask is not None and piece.sees(self.hidden):
            one = self.mask[item if self.mask.shape[0] > 1 else 0]
            alike = one.shape[1] == 1
            over = ((0, 1), 0) if alike else (rows, step)
            seen = _windows(one, piece.windows, over, (columns, along))
        out, lse = attend(query, key, value, bias_of(seen, query), self.scale)
        return out.transpose(0, 1).flatten(1, 2)[None], lse.transpose(0, 1).flatten(1, 2)[None]

    def gather(self, ranges: tuple[Range, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values of some ranges, laid side by side once."""
        if ranges not in self.gathered:
            key, value = (_side_by_side(x, ranges) for x in (self.key, self.value))
            self.gathered[ranges] = (key, value)
        return self.gathered[ranges]


def _side_by_side(x: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    """Ranges of the tokens of x [B, h, N, D]; a copy has its memory in the order [B, N, h, D]."""
    return take(x.transpose(1, 2), 1, ranges).transpose(1, 2)


def _windows(x: Tensor, count: int, *dims: tuple[Range, int]) -> Tensor:
    """Views of x [h, N, ...], [count, h, n, ...].

    Of each dimension from the second on that is given, a range, which moves by a step from one
    window to the next.
    """
    strides, shape, start, step = x.stride(), list(x.shape), x.storage_offset(), 0
    for dim, ((first, end), along) in enumerate(dims, start=1):
        shape[dim] = end - first
        start += first * strides[dim]
        step += along * strides[dim]
    return x.as_strided((count, *shape), (step, *strides), start)
