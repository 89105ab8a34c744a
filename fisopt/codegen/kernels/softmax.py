"""Online softmax over blocks of keys: what the attention kernels share.

Scores are kept in powers of two: ``factor`` is the scale times log2(e), so that a weight is one
``exp2`` of one multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
UNMASKED = tl.constexpr(0)
SEEN = tl.constexpr(1)
"""The mask is bool, True where a query sees a key."""
ADDED = tl.constexpr(2)
"""The mask is added to the scores."""


@triton.jit
def product(a, b, sums, WIDEN: tl.constexpr):
    """``sums + a @ b`` in float32; the interpreter multiplies only what is widened first."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums)


@triton.jit
def masked(
    scores,
    factor,
    mask_ptr,
    strides,
    first,
    row_end,
    n,
    column_end,
    MASK: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Scores [BLOCK_M, BLOCK_N] under a mask, -inf where a query does not see a key.

    Row ``first`` and column ``n`` are those of the block's first score.  ``mask_ptr`` is at the
    mask of this batch item and head; without MASK_ROWS all queries share one row of it.  With
    TAIL the columns from ``column_end`` on are not seen.  Scores come back multiplied by
    ``factor`` if the mask is ADDED.
    """
    row = tl.arange(0, scores.shape[0])
    column = tl.arange(0, scores.shape[1])
    if MASK != UNMASKED:
        inside = (n + column < column_end)[None, :]
        place = column[None, :] * strides[3]  # [1, BLOCK_N]
        mask_ptr += tl.cast(n, tl.int64) * strides[3]
        if MASK_ROWS:
            inside = inside & (first + row < row_end)[:, None]
            place = place + row[:, None] * strides[2]  # [BLOCK_M, BLOCK_N]
            mask_ptr += tl.cast(first, tl.int64) * strides[2]
        if MASK == SEEN:
            seen = tl.load(mask_ptr + place, mask=inside, other=0)
            scores = tl.where(seen != 0, scores, float("-inf"))
        else:
            bias = tl.load(mask_ptr + place, mask=inside, other=0.0)
            scores = scores * factor + bias.to(tl.float32) * LOG2E
    if TAIL:
        scores = tl.where((n + column < column_end)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def fold(scores, v, peak, total, sums, factor, GUARD: tl.constexpr, WIDEN: tl.constexpr):
    """Take one block of keys into the running softmax.

    Shapes: scores [BLOCK_M, BLOCK_N]; v [BLOCK_N, BLOCK_E]; peak, total [BLOCK_M]; sums
        [BLOCK_M, BLOCK_E].  With GUARD a query may see no key of the block.
    """
    highest = tl.maximum(peak, tl.max(scores, 1) * factor)  # [BLOCK_M]
    shift = highest
    if GUARD:
        shift = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.math.exp2(scores * factor - shift[:, None])  # [BLOCK_M, BLOCK_N]
    decay = tl.math.exp2(peak - shift)
    total = total * decay + tl.sum(weights, 1)
    sums = product(weights.to(v.dtype), v, sums * decay[:, None], WIDEN)
    return highest, total, sums


@triton.jit
def averaged(total, sums):
    """The attended values; 0 where a query sees no key."""
    return sums / tl.where(total == 0.0, 1.0, total)[:, None]
