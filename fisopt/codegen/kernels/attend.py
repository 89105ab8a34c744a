"""One block of keys of an attention: read its rows, score them, take them into the softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from fisopt.codegen.kernels.softmax import ADDED, UNMASKED, fold, masked, product


@triton.jit
def rows_of(
    source,
    strides,
    index_ptr,
    place,
    first,
    end,
    width,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    TAIL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Rows from ``first`` on, [BLOCK, WIDTH]; with TAIL 0 from row ``end`` on.

    ``place`` is (batch item, head).  With an index the rows are those that it names, and
    ``source`` is no descriptor.
    """
    row = first + tl.arange(0, BLOCK)
    if DESCRIPTORS:
        block = source.load([place[0], place[1], first, 0]).reshape(BLOCK, WIDTH)
        if TAIL:
            block = tl.where((row < end)[:, None], block, 0.0)
    else:
        source += place[0].to(tl.int64) * strides[0] + place[1].to(tl.int64) * strides[1]
        column = tl.arange(0, WIDTH)
        inside = (column < width)[None, :]
        if index_ptr is None:
            source += tl.cast(first, tl.int64) * strides[2]
            offset = tl.arange(0, BLOCK)
        elif TAIL:
            offset = tl.load(index_ptr + row, mask=row < end, other=0).to(tl.int64)
        else:
            offset = tl.load(index_ptr + row).to(tl.int64)
        offset = offset[:, None] * strides[2] + column[None, :] * strides[3]
        if TAIL:
            block = tl.load(source + offset, mask=inside & (row < end)[:, None], other=0.0)
        elif EVEN:
            block = tl.load(source + offset)
        else:
            block = tl.load(source + offset, mask=inside, other=0.0)
    return block


@triton.jit
def attend_block(
    q,
    key,
    value,
    mask_ptr,
    index_ptr,
    key_strides,
    value_strides,
    mask_strides,
    place,
    rows,
    n,
    end,
    widths,
    state,
    factor,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    MASK: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Take the keys from ``n`` on into the running softmax, with TAIL only those before ``end``.

    ``place`` is (batch item, head) of the keys, ``rows`` first and end of the queries, ``widths``
    features of keys and values, ``state`` (peak, total, sums); the mask is that of this head.
    """
    # keys behind the end are masked as scores: only values must not be read as they are
    CUT: tl.constexpr = TAIL and not DESCRIPTORS
    k = rows_of(
        key,
        key_strides,
        index_ptr,
        place,
        n,
        end,
        widths[0],
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
        CUT,
        DESCRIPTORS,
    )
    scores = product(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32), WIDEN)
    scores = masked(
        scores, factor, mask_ptr, mask_strides, rows[0], rows[1], n, end, MASK, MASK_ROWS, TAIL
    )
    v = rows_of(
        value,
        value_strides,
        index_ptr,
        place,
        n,
        end,
        widths[1],
        BLOCK_N,
        BLOCK_E,
        EVEN_E,
        TAIL,
        DESCRIPTORS,
    )
    scaled = 1.0 if MASK == ADDED else factor
    return fold(scores, v, state[0], state[1], state[2], scaled, MASK != UNMASKED, WIDEN)
