"""tile_attention on a GPU: flash attention that walks the kept key ranges of its plan only.

Each group of queries is cut into blocks of its own, so that all queries of a block read the same
keys.  A work list says which block starts where, those with most keys first.  The key ranges of a
group are one list of blocks: whole ones run without any mask, then the rests of ranges masked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fisopt.codegen.kernels import tile_merge
from fisopt.codegen.kernels.launching import (
    Launch,
    architecture_of,
    attention_constants,
    in_four,
    interpreted,
    mask_arguments,
    padded,
    refuse_operands,
    takes_descriptors,
)
from fisopt.codegen.kernels.softmax import LOG2E
from fisopt.codegen.kernels.tile_choices import (
    CONFIGS,
    OVERLAPPED,
    Masked,
    default_config,
    overlaps,
)
from fisopt.codegen.kernels.tile_kernel import tile_attention_kernel
from fisopt.codegen.kernels.work_list import lists_of
from fisopt.errors import LoweringError
from fisopt.rewrite.ops import tile_attention as contract

OP = "fisopt::tile_attention"
PREFERRED = {"merge": tile_merge}
"""Other implementations, which run before this one where nothing was measured."""
__all__ = [
    "CONFIGS",
    "OVERLAPPED",
    "PREFERRED",
    "Masked",
    "default_config",
    "launch",
    "launch_with_lse",
    "overlaps",
    "prepare",
    "supports",
]


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
        widths, architecture = (q.shape[-1], v.shape[-1]), architecture_of(q)
        config = default_config(max(widths), architecture, described, masked)
        if not interpreted() and all(overlaps(w, architecture, described, masked) for w in widths):
            config = OVERLAPPED
    sizes = config.kwargs
    m, n, d, e = sizes["BLOCK_M"], sizes["BLOCK_N"], padded(q.shape[-1]), padded(v.shape[-1])
    operands = [*zip((q, k, v), ((m, d), (n, d), (n, e)), strict=True)]
    work, blocks = lists = lists_of(rows, keys, (q.shape[2], k.shape[2]), (m, n))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rest: list[Any] = [o, lse, work, blocks, rows, o.stride(), q.shape[1], q.shape[1] // k.shape[1]]
    rest += [q.shape[2], v.shape[3], blocks.shape[2]]
    rest += [x.stride(0) if x.shape[0] > 1 else 0 for x in lists]
    rest += [scale * LOG2E.value]
    grid = (work.shape[1], q.shape[0] * q.shape[1])
    if "OVERLAPPED" in sizes:
        return _overlapped(operands, mask, rest, grid, config)
    constants = attention_constants(q, v, mode, mask_strides)
    rest += [mask, q.stride(), k.stride(), v.stride(), mask_strides, q.shape[3]]
    read = [
        TensorDescriptor.from_tensor(x, [1, 1, *block]) if sizes["DESCRIPTORS"] else x
        for x, block in operands
    ]
    return Launch(tile_attention_kernel, grid, (*read, *rest), constants, config)


def _overlapped(
    operands: list[tuple[Tensor, tuple[int, int]]],
    mask: Tensor | None,
    rest: list[Any],
    grid: tuple[int, ...],
    config: triton.Config,
) -> Launch:
    """The same for the kernel that overlaps; Gluon is imported only here.

    Raises:
        LoweringError: the kernel does not take the operands.
    """
    widths = [block[1] for _, block in operands]
    taken = (overlaps(x.shape[-1], architecture_of(x), takes_descriptors(x)) for x, _ in operands)
    if mask is not None or interpreted() or not all(taken):
        raise LoweringError(
            f"{OP}: {widths} features, {'a' if mask is not None else 'no'} mask, on "
            f"{operands[0][0].device}; with {config} the kernel takes 64 or 128 features, no mask, "
            "and what a descriptor can read on sm_90"
        )
    from fisopt.codegen.kernels.tile_overlapped import described_for_gluon, overlapped_kernel

    read = [described_for_gluon(x, block) for x, block in operands]
    constants = {"BLOCK_D": widths[0], "BLOCK_E": widths[2]}
    return Launch(overlapped_kernel, grid, (*read, *rest), constants, config)
