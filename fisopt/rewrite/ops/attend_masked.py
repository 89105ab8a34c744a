"""attend_masked: attention whose mask speaks of some keys only; every query sees the others.

    out = softmax(scale * query @ key.T + [0, mask, 0]) @ value

Lowering makes it where a mask is proved to hide none but those keys, such as those of text beside
video: a kernel then masks few keys and reads the others at the rate of attention without a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fisopt.rewrite.ops.attend_by import dense_flops
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.tile_attend_masked import whole_mask
from fisopt.rewrite.ops.tile_attention import empty_result, fake_result


def _example() -> tuple[Any, ...]:
    x = torch.arange(8.0, device="cpu").reshape(1, 1, 4, 2)
    seen = torch.tensor([[[[True, False]]]], device="cpu")
    return (x, x, x, seen, 1, None)


@operator(
    "fisopt::attend_masked",
    fake=fake_result,
    example=_example(),
    flops=dense_flops,
    counts_as="self-attention",
    opaque=True,
)
def attend_masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, start: int, scale: float | None
) -> Tensor:
    """Attend in plain torch.

    Shapes: query [B, h, N, D]; key [B, h', M, D]; value [B, h', M, E]; mask [B or 1, h or 1,
        N or 1, m] bool (True: seen), of the keys start to start + m.
    Returns: [B, h, N, E] in query's dtype, laid out in memory as models go on with it.
    """
    whole = whole_mask(mask, start, key.shape[-2])
    grouped = query.shape[-3] != key.shape[-3]
    attended = scaled_dot_product_attention(
        query, key, value, whole, scale=scale, enable_gqa=grouped
    )
    return empty_result(query, value).copy_(attended)
