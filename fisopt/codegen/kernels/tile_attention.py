"""tile_attention on a GPU: flash attention that walks the kept key ranges of its plan only.

Each group of queries is cut into blocks of its own, so that all queries of a block read the same
keys.  A work list says which block starts where, those with most keys first.  In a key range the
whole blocks run without any mask, the rest of the range as one masked block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fisopt.codegen.kernels import tile_merge
from fisopt.codegen.kernels.launching import (
    Launch,
    architecture_of,
    attention_constants,
    in_four,
    mask_arguments,
    padded,
    refuse_operands,
    takes_descriptors,
)
from fisopt.codegen.kernels.softmax import ADDED, LOG2E, UNMASKED, averaged, fold, masked, product
from fisopt.codegen.kernels.tile_choices import CONFIGS, Masked, default_config
from fisopt.codegen.kernels.work_list import work_list_of
from fisopt.rewrite.ops import tile_attention as contract

OP = "fisopt::tile_attention"
PREFERRED = {"merge": tile_merge}
"""Other implementations, which run before this one where nothing was measured."""
__all__ = [
    "CONFIGS",
    "PREFERRED",
    "Masked",
    "default_config",
    "launch",
    "launch_with_lse",
    "prepare",
    "supports",
]


@triton.jit
def _rows_of(
    source,
    strides,
    batch,
    head,
    first,
    end,
    width,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    TAIL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Rows from ``first`` on of one head, [BLOCK, WIDTH]; with TAIL 0 from row ``end`` on."""
    row = first + tl.arange(0, BLOCK)
    if DESCRIPTORS:
        block = source.load([batch, head, first, 0]).reshape(BLOCK, WIDTH)
        if TAIL:
            block = tl.where((row < end)[:, None], block, 0.0)
    else:
        start = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        start += tl.cast(first, tl.int64) * strides[2]
        column = tl.arange(0, WIDTH)
        place = tl.arange(0, BLOCK)[:, None] * strides[2] + column[None, :] * strides[3]
        inside = (column < width)[None, :]
        if TAIL:
            block = tl.load(source + start + place, mask=inside & (row < end)[:, None], other=0.0)
        elif EVEN:
            block = tl.load(source + start + place)
        else:
            block = tl.load(source + start + place, mask=inside, other=0.0)
    return block


@triton.jit
def _keys_of_block(
    q,
    key,
    value,
    mask_ptr,
    key_strides,
    value_strides,
    mask_strides,
    batch,
    head,
    first,
    last,
    n,
    end,
    width_d,
    width_e,
    peak,
    total,
    sums,
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
    """Take the keys from ``n`` on into the running softmax, with TAIL only those before ``end``."""
    # keys behind the end are masked as scores: only values must not be read as they are
    CUT: tl.constexpr = TAIL and not DESCRIPTORS
    k = _rows_of(
        key, key_strides, batch, head, n, end, width_d, BLOCK_N, BLOCK_D, EVEN_D, CUT, DESCRIPTORS
    )
    scores = product(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32), WIDEN)
    scores = masked(
        scores, factor, mask_ptr, mask_strides, first, last, n, end, MASK, MASK_ROWS, TAIL
    )
    v = _rows_of(
        value,
        value_strides,
        batch,
        head,
        n,
        end,
        width_e,
        BLOCK_N,
        BLOCK_E,
        EVEN_E,
        TAIL,
        DESCRIPTORS,
    )
    scaled = 1.0 if MASK == ADDED else factor
    return fold(scores, v, peak, total, sums, scaled, MASK != UNMASKED, WIDEN)


@triton.jit
def _tile_attention_kernel(
    query,
    key,
    value,
    mask_ptr,
    out_ptr,
    lse_ptr,
    work_ptr,
    rows_ptr,
    keys_ptr,
    query_strides,
    key_strides,
    value_strides,
    mask_strides,
    out_strides,
    heads,
    shared,
    tokens,
    width_d,
    width_e,
    ranges,
    work_stride,
    keys_stride,
    factor,
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
        descriptors; mask [B, h, N, M]; out [B, h, N, E]; lse [B, h, N]; work [h or 1, P, 2]; rows
        and keys as in `TilePlan`.
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
    q = _rows_of(
        query,
        query_strides,
        batch,
        head,
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
    key_head = head // shared
    bounds = keys_ptr + head * keys_stride + group * ranges * 2
    for _ in range(ranges):
        start = tl.load(bounds)
        end = tl.load(bounds + 1)
        bounds += 2
        whole = start + (end - start) // BLOCK_N * BLOCK_N
        for n in tl.range(start, whole, BLOCK_N):
            peak, total, sums = _keys_of_block(
                q,
                key,
                value,
                mask_ptr,
                key_strides,
                value_strides,
                mask_strides,
                batch,
                key_head,
                first,
                last,
                n,
                end,
                width_d,
                width_e,
                peak,
                total,
                sums,
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
        if whole < end:
            peak, total, sums = _keys_of_block(
                q,
                key,
                value,
                mask_ptr,
                key_strides,
                value_strides,
                mask_strides,
                batch,
                key_head,
                first,
                last,
                whole,
                end,
                width_d,
                width_e,
                peak,
                total,
                sums,
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
    place = out_ptr + batch.to(tl.int64) * out_strides[0] + head.to(tl.int64) * out_strides[1]
    place = place + row.to(tl.int64)[:, None] * out_strides[2] + column[None, :] * out_strides[3]
    stored = inside[:, None] & (column < width_e)[None, :]
    tl.store(place, averaged(total, sums).to(out_ptr.dtype.element_ty), mask=stored)
    if lse_ptr is not None:
        lse = (peak + tl.log2(total)) / LOG2E  # [BLOCK_M], -inf where a query sees no key
        tl.store(lse_ptr + pair.to(tl.int64) * tokens + row, lse, mask=inside)


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
    """Check that the kernel takes these arguments of the contract.

    Raises:
        LoweringError: it does not; the message names what it got and what is supported.
    """
    del mask, rows, keys, pairs
    refuse_operands(OP, scale, query=query, key=key, value=value)


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
    config: triton.Config | None = None,
) -> Tensor:
    """Run the kernel with the contract's arguments; ``config`` fixes one tile choice.

    Raises:
        LoweringError: see `supports`.
    """
    supports(query, key, value, mask, rows, keys, pairs, scale)
    out = contract.empty_result(query, value)
    prepare(query, key, value, mask, rows, keys, scale, out, None, config).run()
    return out


def launch_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
    config: triton.Config | None = None,
) -> tuple[Tensor, Tensor]:
    """`launch`, and the log of the sum of exp of each query's scores: [..., h, N] float32.

    Attentions of the same queries over keys that do not overlap can be merged with it.
    """
    supports(query, key, value, mask, rows, keys, pairs, scale)
    out = contract.empty_result(query, value)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    prepare(query, key, value, mask, rows, keys, scale, out, lse, config).run()
    return out, lse


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    scale: float | None,
    out: Tensor,
    lse: Tensor | None,
    config: triton.Config | None,
) -> Launch:
    """The kernel's arguments and grid."""
    q, k, v, o = (in_four(x) for x in (query, key, value, out))
    mode, mask_strides = mask_arguments(mask, (*q.shape[:3], k.shape[-2]))
    if config is None:
        described = all(takes_descriptors(x) for x in (q, k, v))
        masked: Masked = "no" if mask is None else "each" if mask_strides[2] else "alike"
        width = max(q.shape[-1], v.shape[-1])
        config = default_config(width, architecture_of(q), described, masked)
    sizes = config.kwargs
    block_d, block_e = padded(q.shape[-1]), padded(v.shape[-1])
    work = work_list_of(rows, keys, q.shape[-2], sizes["BLOCK_M"])
    table = keys.contiguous()
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    blocks = ((sizes["BLOCK_M"], block_d), (sizes["BLOCK_N"], block_d), (sizes["BLOCK_N"], block_e))
    operands = [
        TensorDescriptor.from_tensor(x, [1, 1, *block]) if sizes["DESCRIPTORS"] else x
        for x, block in zip((q, k, v), blocks, strict=True)
    ]
    arguments: list[Any] = [*operands, mask, o, lse, work, rows, table]
    arguments += [q.stride(), k.stride(), v.stride(), mask_strides, o.stride()]
    arguments += [q.shape[1], q.shape[1] // k.shape[1], q.shape[2], q.shape[3], v.shape[3]]
    arguments += [table.shape[2], *(x.stride(0) if x.shape[0] > 1 else 0 for x in (work, table))]
    arguments += [scale * LOG2E.value]
    grid = (work.shape[1], q.shape[0] * q.shape[1])
    constants = attention_constants(q, v, mode, mask_strides)
    return Launch(_tile_attention_kernel, grid, tuple(arguments), constants, config)
