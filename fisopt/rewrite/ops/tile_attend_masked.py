"""tile_attend_masked: `tile_attention` whose mask speaks of some keys only.

It is to `tile_attention` what `attend_masked` is to dense attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.tile_attention import (
    by_group_backward,
    empty_result,
    fake_result,
    kept_flops,
    tile_attention,
)


def whole_mask(mask: Tensor, start: int, keys: int) -> Tensor:
    """A mask of all keys, from one of the keys from ``start`` on."""
    return pad(mask, (start, keys - start - mask.shape[-1]), value=True)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    start: int,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """As `tile_attention` runs in plain torch: one dense attention a group."""
    mask = whole_mask(mask, start, key.shape[-2])
    out: Tensor = tile_attention.implementation(query, key, value, mask, rows, keys, pairs, scale)
    return out


def _backward(
    needed: Sequence[int],
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    start: int,
    *plan: Any,
) -> list[Tensor]:
    whole = whole_mask(mask, start, key.shape[-2])
    return by_group_backward(needed, grads, query, key, value, whole, *plan)


def _flops(query: Any, key: Any, value: Any, mask: Any, start: int, *plan: Any) -> float:
    return kept_flops(query, key, value, mask, *plan)


def _example() -> tuple[Any, ...]:
    entries = torch.arange(8.0, device="cpu").reshape(1, 1, 4, 2)
    seen = torch.tensor([[[[True, False]]]], device="cpu")
    rows, keys = torch.tensor([0, 4], device="cpu"), torch.tensor([[[[0, 3]]]], device="cpu")
    return (entries, entries, entries, seen, 1, rows, keys, 12, None)


@operator(
    "fisopt::tile_attend_masked",
    implementation=_run,
    backward=_backward,
    fake=fake_result,
    example=_example(),
    flops=_flops,
    counts_as="self-attention",
    opaque=True,
)
def tile_attend_masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    start: int,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """`tile_attention` under a mask of all keys, in plain torch: N x N memory, for checking.

    Shapes: those of `tile_attention`; mask [B or 1, h or 1, N or 1, m] bool (True: seen), of the
        keys start to start + m.
    Returns: [..., h, N, E] in query's dtype.
    """
    whole = whole_mask(mask, start, key.shape[-2])
    return empty_result(query, value).copy_(
        tile_attention.reference(query, key, value, whole, rows, keys, pairs, scale)
    )
