"""The kernel of tile_attention: one block of queries of one head against its list of key blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from fisopt.codegen.kernels.attend import attend_block, rows_of
from fisopt.codegen.kernels.softmax import LOG2E, UNMASKED, averaged


@triton.jit
def tile_attention_kernel(
    query,
    key,
    value,
    out_ptr,
    lse_ptr,
    work_ptr,
    blocks_ptr,
    rows_ptr,
    out_strides,
    heads,
    shared,
    tokens,
    width_e,
    length,
    work_stride,
    blocks_stride,
    factor,
    mask_ptr,
    query_strides,
    key_strides,
    value_strides,
    mask_strides,
    width_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    MASK: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of queries of one head.

    Shapes: query, key, value [B, h, N, D], [B, h', M, D], [B, h', M, E], as pointers or
        descriptors; mask [B, h, N, M]; out [B, h, N, E]; lse [B, h, N]; rows as in `TilePlan`;
        work and blocks as `lists_of` makes them.
    """
    pair = tl.program_id(1)
    batch = pair // heads
    head = pair % heads
    work = work_ptr + head * work_stride + tl.program_id(0) * 2
    group = tl.load(work)
    if group < 0:
        return
    first = tl.load(work + 1)
    last = tl.load(rows_ptr + group + 1)
    row = first + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    q = rows_of(
        query,
        query_strides,
        None,
        (batch, head),
        first,
        last,
        width_d,
        BLOCK_M,
        BLOCK_D,
        EVEN_D,
        not DESCRIPTORS,
        DESCRIPTORS,
    )  # [BLOCK_M, BLOCK_D]
    if MASK != UNMASKED:
        mask_ptr += batch.to(tl.int64) * mask_strides[0] + head.to(tl.int64) * mask_strides[1]
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    place = (batch, head // shared)
    rows = (first, last)
    widths = (width_d, width_e)
    blocks = blocks_ptr + head * blocks_stride + group * length * 2
    whole = tl.load(blocks)
    count = tl.load(blocks + 1)
    for i in tl.range(0, whole):
        n = tl.load(blocks + 2 + 2 * i)
        peak, total, sums = attend_block(
            q,
            key,
            value,
            mask_ptr,
            None,
            key_strides,
            value_strides,
            mask_strides,
            place,
            rows,
            n,
            n + BLOCK_N,
            widths,
            (peak, total, sums),
            factor,
            BLOCK_N,
            BLOCK_D,
            BLOCK_E,
            EVEN_D,
            EVEN_E,
            MASK,
            MASK_ROWS,
            False,
            DESCRIPTORS,
            WIDEN,
        )
    for i in tl.range(whole, count, num_stages=1):
        n = tl.load(blocks + 2 + 2 * i)
        end = tl.load(blocks + 3 + 2 * i)
        peak, total, sums = attend_block(
            q,
            key,
            value,
            mask_ptr,
            None,
            key_strides,
            value_strides,
            mask_strides,
            place,
            rows,
            n,
            end,
            widths,
            (peak, total, sums),
            factor,
            BLOCK_N,
            BLOCK_D,
            BLOCK_E,
            EVEN_D,
            EVEN_E,
            MASK,
            MASK_ROWS,
            True,
            DESCRIPTORS,
            WIDEN,
        )
    column = tl.arange(0, BLOCK_E)
    inside = row < last
    out = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    out = out + row.to(tl.int64)[:, None] * out_strides[2] + column[None, :] * out_strides[3]
    stored = inside[:, None] & (column < width_e)[None, :]
    tl.store(out, averaged(total, sums).to(out_ptr.dtype.element_ty), mask=stored)
    if lse_ptr is not None:
        lse = (peak + tl.log2(total)) / LOG2E  # [BLOCK_M], -inf where a query sees no key
        tl.store(lse_ptr + pair.to(tl.int64) * tokens + row, lse, mask=inside)
