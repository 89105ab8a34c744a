"""reduce_attend_restore on a GPU: flash attention that gathers rows and restores them itself.

Rows of queries, keys and values are gathered where they are read.  A finished row of the result is
written to the first entry that restores from it; when all rows of a block are there, they are
copied to the other entries in chunks of equal size, so that a row for which many entries wait
costs no more than many rows for which one does.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fisopt.codegen.kernels import reduce_dense
from fisopt.codegen.kernels.attend import attend_block, rows_of
from fisopt.codegen.kernels.inverse import inverse
from fisopt.codegen.kernels.launching import (
    Launch,
    architecture_of,
    attention_constants,
    in_four,
    mask_arguments,
    refuse_operands,
)
from fisopt.codegen.kernels.softmax import LOG2E, UNMASKED, averaged
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.tile_attention import empty_result

OP = "fisopt::reduce_attend_restore"
PREFERRED = {"dense": reduce_dense}
"""Other implementations, which run before this one where nothing was measured."""


def _config(block_m: int, block_n: int, warps: int, stages: int) -> triton.Config:
    return triton.Config(
        {"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=warps, num_stages=stages
    )


CONFIGS = [
    _config(128, 64, 8, 3),
    _config(128, 64, 8, 2),
    _config(128, 32, 8, 2),
    _config(64, 32, 8, 2),
]


@triton.jit
def _reduce_attend_restore_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    out_ptr,
    queries_ptr,
    keys_ptr,
    order_ptr,
    owner_ptr,
    starts_ptr,
    query_strides,
    key_strides,
    value_strides,
    mask_strides,
    out_strides,
    heads,
    queries,
    keys,
    entries,
    width_d,
    width_e,
    factor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    MASK: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of kept queries of one head, and every entry that restores from one of them.

    Shapes: query [B, h, S, D]; key [B, h, T, D]; value [B, h, T, E]; mask [B, h, M, K]; out
        [B, h, S, E]; queries [B * h, M]; keys [B * h, K]; order, owner [B * h, S]; starts
        [B * h, M + 1].
    """
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    first = tl.program_id(0) * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    place = (batch, head)
    rows = (first, queries)
    widths = (width_d, width_e)
    out_ptr += batch * out_strides[0] + head * out_strides[1]
    kept_ptr = keys_ptr
    if keys_ptr is not None:
        kept_ptr += pair * keys
    q = rows_of(
        query_ptr,
        query_strides,
        queries_ptr + pair * queries,
        place,
        first,
        queries,
        width_d,
        BLOCK_M,
        BLOCK_D,
        EVEN_D,
        True,
        False,
    )  # [BLOCK_M, BLOCK_D]
    if MASK != UNMASKED:
        mask_ptr += batch * mask_strides[0] + head * mask_strides[1]
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    whole = keys // BLOCK_N * BLOCK_N
    for n in tl.range(0, whole, BLOCK_N):
        peak, total, sums = attend_block(
            q,
            key_ptr,
            value_ptr,
            mask_ptr,
            kept_ptr,
            key_strides,
            value_strides,
            mask_strides,
            place,
            rows,
            n,
            keys,
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
            False,
            WIDEN,
        )
    if whole < keys:
        peak, total, sums = attend_block(
            q,
            key_ptr,
            value_ptr,
            mask_ptr,
            kept_ptr,
            key_strides,
            value_strides,
            mask_strides,
            place,
            rows,
            whole,
            keys,
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
            False,
            WIDEN,
        )
    column = tl.arange(0, BLOCK_E)
    wide = (column < width_e)[None, :]
    order_ptr += pair * entries
    owner_ptr += pair * entries
    starts_ptr += pair * (queries + 1)
    begin = tl.load(starts_ptr + row, mask=row < queries, other=0)
    waits = begin < tl.load(starts_ptr + row + 1, mask=row < queries, other=0)
    target = tl.load(order_ptr + begin, mask=waits, other=0).to(tl.int64)  # [BLOCK_M]
    out_ptrs = out_ptr + column[None, :] * out_strides[3]  # [1, BLOCK_E]
    result = averaged(total, sums).to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs + target[:, None] * out_strides[2], result, mask=waits[:, None] & wide)
    tl.debug_barrier()
    stop = tl.load(starts_ptr + tl.minimum(first + BLOCK_M, queries))
    for start in tl.range(tl.load(starts_ptr + first), stop, BLOCK_M):
        entry = start + tl.arange(0, BLOCK_M)
        inside = entry < stop
        owner = tl.load(owner_ptr + entry, mask=inside, other=0)
        holder = tl.load(starts_ptr + owner, mask=inside, other=0)
        other = inside & (holder != entry)
        source = tl.load(order_ptr + holder, mask=other, other=0).to(tl.int64)
        sink = tl.load(order_ptr + entry, mask=other, other=0).to(tl.int64)
        copied = other[:, None] & wide
        block = tl.load(out_ptrs + source[:, None] * out_strides[2], mask=copied, other=0.0)
        tl.store(out_ptrs + sink[:, None] * out_strides[2], block, mask=copied)


def supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor | None,
    origin: Tensor,
    scale: float | None,
    frames: int,
    before: int,
    after: int,
) -> None:
    """Check that the kernel takes these arguments of the contract.

    Raises:
        LoweringError: it does not; the message names what it got and what is supported.
    """
    del mask, queries, keys, origin, frames, before, after
    refuse_operands(OP, scale, query=query, key=key, value=value)
    if query.shape[:-2] != key.shape[:-2]:
        raise LoweringError(
            f"{OP}: queries of {list(query.shape[:-2])} and keys of {list(key.shape[:-2])}; the "
            "kernel takes as many heads of keys as of queries"
        )


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor | None,
    origin: Tensor,
    scale: float | None,
    frames: int,
    before: int,
    after: int,
    config: triton.Config | None = None,
) -> Tensor:
    """Run the kernel with the contract's arguments; ``config`` fixes one tile choice.

    Raises:
        LoweringError: see `supports`.
    """
    place = (frames, before, after)
    supports(query, key, value, mask, queries, keys, origin, scale, *place)
    out = empty_result(query, value)
    prepare(query, key, value, mask, queries, keys, origin, scale, out, config).run()
    return out


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor | None,
    origin: Tensor,
    scale: float | None,
    out: Tensor,
    config: triton.Config | None,
) -> Launch:
    """The kernel's arguments and grid."""
    if config is None:
        width = max(query.shape[-1], value.shape[-1])
        config = default_config(width, architecture_of(query))
    q, k, v, o = (in_four(x) for x in (query, key, value, out))
    kept, count = queries.shape[-1], k.shape[-2] if keys is None else keys.shape[-1]
    order, owner, starts = inverse(origin, kept)
    mode, mask_strides = mask_arguments(mask, (*q.shape[:2], kept, count))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    gathered = None if keys is None else keys.contiguous()
    arguments: list[Any] = [q, k, v, mask, o, queries.contiguous(), gathered, order, owner, starts]
    arguments += [q.stride(), k.stride(), v.stride(), mask_strides, o.stride()]
    arguments += [q.shape[1], kept, count, q.shape[2], q.shape[3], v.shape[3], scale * LOG2E.value]
    grid = (triton.cdiv(kept, config.kwargs["BLOCK_M"]), q.shape[0] * q.shape[1])
    constants = attention_constants(q, v, mode, mask_strides)
    return Launch(_reduce_attend_restore_kernel, grid, tuple(arguments), constants, config)


def default_config(width: int, architecture: int) -> triton.Config:
    """The tile choice without a measurement, for an architecture such as 90 for sm_90.

    Source: the largest blocks that compile without spills, see benchmarks/results/aot.json.
    """
    if width > 128:
        return _config(64, 32, 8, 2)
    return _config(128, 64, 8, 2) if architecture >= 90 else _config(128, 32, 8, 2)
