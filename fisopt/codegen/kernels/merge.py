"""Results of attentions of the same queries over different keys, merged by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisopt.codegen.kernels.dense_attention import HIDDEN
from fisopt.codegen.kernels.launching import Launch, padded

NOTHING = tl.constexpr(HIDDEN / 2)
"""A log-sum-exp below this is of hidden keys alone."""
CONFIG = triton.Config({"BLOCK": 32}, num_warps=4)


@triton.jit
def _merge_kernel(
    out,
    parts,
    sums,
    out_strides,
    part_strides,
    sum_strides,
    heads,
    tokens,
    width,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Some queries of one head.

    Shapes: out and parts [B, h, n, E]; sums [B, h, n].
    """
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    there = row < tokens
    inside = there[:, None] & (column < width)[None, :]
    row = row.to(tl.int64)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    for i in tl.static_range(len(parts)):
        place = batch * sum_strides[i][0] + head * sum_strides[i][1] + row * sum_strides[i][2]
        peak = tl.maximum(peak, tl.load(sums[i] + place, mask=there, other=0.0))
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, WIDTH], tl.float32)
    for i in tl.static_range(len(parts)):
        place = batch * sum_strides[i][0] + head * sum_strides[i][1] + row * sum_strides[i][2]
        weight = tl.exp(tl.load(sums[i] + place, mask=there, other=0.0) - peak)
        place = batch * part_strides[i][0] + head * part_strides[i][1]
        place = place + row[:, None] * part_strides[i][2] + column[None, :] * part_strides[i][3]
        part = tl.load(parts[i] + place, mask=inside, other=0.0).to(tl.float32)
        total += weight
        result += weight[:, None] * part
    result = result / total[:, None]
    if MASKED:
        result = tl.where((peak > NOTHING)[:, None], result, 0.0)
    place = batch * out_strides[0] + head * out_strides[1]
    place = place + row[:, None] * out_strides[2] + column[None, :] * out_strides[3]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


def merge(
    out: Tensor, parts: Sequence[Tensor], sums: Sequence[Tensor], masked: bool, by_kernel: bool
) -> None:
    """Merge results.

    Args:
        out: [B, h, n, E]; takes the merged results.
        parts: results, [B, h, n, E] each.
        sums: their log-sum-exp, [B, h, n] each.
        masked: whether a query may see no key; it gets zeros.
        by_kernel: whether a Triton kernel runs, which reads every part once, or plain torch.
    """
    if by_kernel:
        prepare(out, parts, sums, masked).run()
    else:
        _in_torch(out, parts, sums, masked)


def _in_torch(out: Tensor, parts: Sequence[Tensor], sums: Sequence[Tensor], masked: bool) -> None:
    weights = torch.stack(list(sums))  # [P, B, h, n]
    shares = weights.softmax(0)[..., None]
    if masked:
        shares = shares * (weights.amax(0) > NOTHING.value)[..., None]
    total = parts[0] * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total = total + part * share
    out.copy_(total)


def prepare(out: Tensor, parts: Sequence[Tensor], sums: Sequence[Tensor], masked: bool) -> Launch:
    """The kernel's arguments and grid; see `merge`."""
    batch, heads, tokens, width = out.shape
    arguments = (
        out,
        tuple(parts),
        tuple(sums),
        out.stride(),
        tuple(part.stride() for part in parts),
        tuple(one.stride() for one in sums),
        heads,
        tokens,
        width,
    )
    grid = (triton.cdiv(tokens, CONFIG.kwargs["BLOCK"]), batch * heads)
    constants = {"WIDTH": padded(width), "MASKED": masked}
    return Launch(_merge_kernel, grid, arguments, constants, CONFIG)
