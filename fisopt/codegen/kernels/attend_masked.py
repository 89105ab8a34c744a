"""attend_masked by dense attentions: of the keys that all see, and of those that a mask speaks of.

Their results are merged by log-sum-exp, so that the many keys run without a mask.

Source: merging is that of FlashAttention's blocks, arXiv:2205.14135.
"""

from __future__ import annotations

import math

from torch import Tensor

from fisopt.codegen.kernels.dense_attention import (
    attend,
    bias_of,
    refuse_dense,
    refuse_operands,
)
from fisopt.codegen.kernels.merge import merge
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.tile_attention import empty_result

OP = "fisopt::attend_masked"


def supports(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, start: int, scale: float | None
) -> None:
    """Check that dense attentions take the operands.

    Raises:
        LoweringError: they do not; the message names what it got and what is supported.
    """
    del start
    refuse_operands(OP, query, key, value)
    if query.ndim != 4:
        raise LoweringError(f"{OP}: query is {list(query.shape)}; wanted [B, h, N, D]")
    refuse_dense(OP, query, mask, scale)


def launch(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, start: int, scale: float | None
) -> Tensor:
    """Run the contract's arguments.

    Raises:
        LoweringError: see `supports`; or every backend fails.
    """
    supports(query, key, value, mask, start, scale)
    out = empty_result(query, value)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    end, count = start + mask.shape[-1], key.shape[-2]
    parts = [(0, start, None), (start, end, mask), (end, count, None)]
    found = []
    for first, last, seen in parts:
        if last > first:
            k, v = (x.narrow(2, first, last - first) for x in (key, value))
            found.append(attend(query, k, v, bias_of(seen, query), scale))
    merge(out, [x for x, _ in found], [lse for _, lse in found], False, out.is_cuda)
    return out
