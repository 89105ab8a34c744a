"""The kernel of tile_attention for sm_90: softmax beside the matrix products, in Gluon.

While the values of one block of keys are multiplied, the softmax of the next block is computed.
Two blocks of keys and of values are in shared memory, and the copies of the next ones under way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _room(source, BLOCK: gl.constexpr, WIDTH: gl.constexpr):
    """What one operand is copied through: its descriptor, two buffers, a barrier for each."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, WIDTH], source.dtype)
    buffers = gl.allocate_shared_memory(source.dtype, [2, BLOCK, WIDTH], layout)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(full.index(0), count=1)
    mbarrier.init(full.index(1), count=1)
    return source, buffers, full


@gluon.jit
def _start_of(listed, i):
    """First key of block ``i``, if there is one: read long before `_load` needs it."""
    return gl.load(listed[0] + 2 * i, mask=i < listed[1], other=0)


@gluon.jit
def _load(room, place, n, listed, i):
    """Start the copy of block ``i``, if there is one, from key ``n`` on into its buffer."""
    if i < listed[1]:
        bar = room[2].index(i % 2)
        mbarrier.expect(bar, room[0].block_type.nbytes)
        tma.async_copy_global_to_shared(
            room[0], [place[0], place[1], n, 0], bar, room[1].index(i % 2)
        )


@gluon.jit
def _loaded(room, i):
    """Wait for the copy of block ``i``; the buffer that it is in."""
    mbarrier.wait(room[2].index(i % 2), (i // 2) & 1)
    return room[1].index(i % 2)


@gluon.jit
def _scored(q, k, LAYOUT: gl.constexpr):
    """Start the product of queries and keys: [BLOCK_M, BLOCK_N], to be waited for."""
    BLOCK_M: gl.constexpr = q.shape[0]
    BLOCK_N: gl.constexpr = k.shape[0]
    zeros = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=LAYOUT)
    return warpgroup_mma(q, k.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _softmax(scores, listed, i, peak, total, factor, TAIL: gl.constexpr):
    """Weights [BLOCK_M, BLOCK_N] of one block; peak and total with it; decay of what was before.

    With TAIL the keys from the end of the block on are not seen.
    """
    if TAIL:
        block = listed[0] + 2 * i
        place: gl.constexpr = gl.SliceLayout(0, scores.type.layout)
        column = gl.load(block) + gl.arange(0, scores.shape[1], layout=place)
        scores = gl.where((column < gl.load(block + 1))[None, :], scores, float("-inf"))
    highest = gl.maximum(peak, gl.max(scores, 1) * factor)  # [BLOCK_M]
    shift = highest
    if TAIL:
        shift = gl.where(highest == float("-inf"), 0.0, highest)
    weights = gl.exp2(scores * factor - shift[:, None])
    decay = gl.exp2(peak - shift)
    return weights, highest, total * decay + gl.sum(weights, 1), decay


@gluon.jit
def _cut(v, listed, i, WARPS: gl.constexpr):
    """Zero the values from the end of block ``i`` on: what is there may be anything, also NaN."""
    block = listed[0] + 2 * i
    WIDTH: gl.constexpr = v.shape[1]
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 8], [32 * 8 // WIDTH, WIDTH // 8], [WARPS, 1], [1, 0]
    )
    row = gl.load(block) + gl.arange(0, v.shape[0], layout=gl.SliceLayout(1, layout))
    held = v.load(layout)
    v.store(gl.where((row < gl.load(block + 1))[:, None], held, gl.zeros_like(held)))
    fence_async_shared()


@gluon.jit
def _decayed(sums, decay):
    """Sums [BLOCK_M, BLOCK_E] brought to a new peak."""
    return sums * gl.convert_layout(decay, gl.SliceLayout(1, sums.type.layout))[:, None]


@gluon.jit
def _turn(i, q, keys, values, place, listed, state, factor, SCORES: gl.constexpr):
    """Score whole block ``i``, and beside its softmax take in the values of the block before.

    What can wait stands behind the start of the scores, where the tensor cores are busy.
    """
    weights, peak, total, decay, sums = state
    n = _start_of(listed, i)
    scores = _scored(q, _loaded(keys, i), SCORES)
    _load(values, place, n, listed, i)
    sums = _decayed(sums, decay)
    v = _loaded(values, i - 1)
    sums = warpgroup_mma(weights, v, sums, is_async=True)
    n = _start_of(listed, i + 2)
    scores = warpgroup_mma_wait(1, deps=(scores,))
    following, peak, total, decay = _softmax(scores, listed, i, peak, total, factor, False)
    following = gl.convert_layout(following.to(v.dtype), weights.type.layout)
    # its branch also keeps the compiler from waiting for the values before the softmax
    _load(keys, place, n, listed, i + 2)
    sums, weights = warpgroup_mma_wait(0, deps=(sums, weights))
    return following, peak, total, decay, sums


@gluon.jit
def _tail_turn(
    i, q, keys, values, place, listed, state, factor, SCORES: gl.constexpr, WARPS: gl.constexpr
):
    """The same where blocks may end early, one after the other: masks need the registers."""
    weights, peak, total, decay, sums = state
    sums = _added(weights, values, listed, i - 1, sums, decay, WARPS)
    _load(values, place, _start_of(listed, i), listed, i)
    scores = warpgroup_mma_wait(0, deps=(_scored(q, _loaded(keys, i), SCORES),))
    _load(keys, place, _start_of(listed, i + 2), listed, i + 2)
    following, peak, total, decay = _softmax(scores, listed, i, peak, total, factor, True)
    following = gl.convert_layout(following.to(values[0].dtype), weights.type.layout)
    return following, peak, total, decay, sums


@gluon.jit
def _added(weights, values, listed, i, sums, decay, WARPS: gl.constexpr):
    """The sums with the values of block ``i``, which may end early."""
    v = _loaded(values, i)
    _cut(v, listed, i, WARPS)
    sums = warpgroup_mma(weights, v, _decayed(sums, decay), is_async=True)
    sums, weights = warpgroup_mma_wait(0, deps=(sums, weights))
    return sums


@gluon.jit
def overlapped_kernel(
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
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_E: gl.constexpr,
    OVERLAPPED: gl.constexpr,
):
    """One block of queries of one head.

    Shapes: query, key, value [B, h, N, D], [B, h', M, D], [B, h', M, E], as descriptors; the rest
        as in `tile_attention_kernel`.  OVERLAPPED is what the tile choice calls this kernel.
    """
    WARPS: gl.constexpr = gl.num_warps()
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_E, 16])
    pair = gl.program_id(1)
    batch = pair // heads
    head = pair % heads
    work = work_ptr + head * work_stride + gl.program_id(0) * 2
    group = gl.load(work)
    if group < 0:
        return
    first = gl.load(work + 1)
    last = gl.load(rows_ptr + group + 1)
    blocks = blocks_ptr + head * blocks_stride + group * length * 2
    whole = gl.load(blocks)
    count = gl.maximum(gl.load(blocks + 1), 1)  # a list of no blocks begins with an empty one
    listed = (blocks + 2, count)
    place = (batch, head // shared)

    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_D], query.dtype)
    q = gl.allocate_shared_memory(query.dtype, [BLOCK_M, BLOCK_D], layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    keys = _room(key, BLOCK_N, BLOCK_D)
    values = _room(value, BLOCK_N, BLOCK_E)
    fence_async_shared()
    mbarrier.expect(q_full, query.block_type.nbytes)
    tma.async_copy_global_to_shared(query, [batch, head, first, 0], q_full, q)
    n = _start_of(listed, 0)
    _load(keys, place, n, listed, 0)
    _load(values, place, n, listed, 0)
    _load(keys, place, _start_of(listed, 1), listed, 1)
    n = _start_of(listed, 2)

    peak = gl.full([BLOCK_M], float("-inf"), gl.float32, layout=gl.SliceLayout(1, SCORES))
    total = gl.full([BLOCK_M], 0.0, gl.float32, layout=gl.SliceLayout(1, SCORES))
    sums = gl.zeros([BLOCK_M, BLOCK_E], gl.float32, layout=SUMS)
    mbarrier.wait(q_full, 0)
    scores = warpgroup_mma_wait(0, deps=(_scored(q, _loaded(keys, 0), SCORES),))
    _load(keys, place, n, listed, 2)
    weights, peak, total, decay = _softmax(scores, listed, 0, peak, total, factor, True)
    weights = gl.convert_layout(weights.to(value.dtype), gl.DotOperandLayout(0, SUMS, 2))
    state = (weights, peak, total, decay, sums)
    for i in range(1, whole):
        state = _turn(i, q, keys, values, place, listed, state, factor, SCORES)
    for i in range(gl.maximum(whole, 1), count):
        state = _tail_turn(i, q, keys, values, place, listed, state, factor, SCORES, WARPS)
    weights, peak, total, decay, sums = state
    sums = _added(weights, values, listed, count - 1, sums, decay, WARPS)

    share = gl.convert_layout(1.0 / gl.where(total == 0.0, 1.0, total), gl.SliceLayout(1, SUMS))
    result = (sums * share[:, None]).to(out_ptr.dtype.element_ty)
    STORED: gl.constexpr = gl.BlockedLayout(
        [1, 8], [32 * 8 // BLOCK_E, BLOCK_E // 8], [WARPS, 1], [1, 0]
    )
    row = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, STORED))
    column = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, STORED))
    out = out_ptr + batch.to(gl.int64) * out_strides[0] + head.to(gl.int64) * out_strides[1]
    out = out + row.to(gl.int64)[:, None] * out_strides[2] + column[None, :] * out_strides[3]
    stored = (row < last)[:, None] & (column < width_e)[None, :]
    gl.store(out, gl.convert_layout(result, STORED), mask=stored)
    if lse_ptr is not None:
        row = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, SCORES))
        lse = (peak + gl.log2(total)) * LN2  # [BLOCK_M], -inf where a query sees no key
        gl.store(lse_ptr + pair.to(gl.int64) * tokens + row, lse, mask=row < last)


def described_for_gluon(x: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of [B, h, N, D] that copies blocks of rows of one head."""
    dtype = gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([1, 1, *block], dtype)
    return TensorDescriptor.from_tensor(x, [1, 1, *block], layout)
