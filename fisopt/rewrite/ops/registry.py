"""The op contracts by operator: references, axis rules, and how each is lowered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import Axes
from fisopt.rewrite.ops import (
    fill_frames,
    gather_frames,
    match_tokens,
    reduce_attend_restore,
    reduce_tokens,
    restore_tokens,
    tile_attention,
)

CONTRACTS: dict[Any, Callable[..., Any]] = {
    torch.ops.fisopt.gather_frames.default: gather_frames.reference,
    torch.ops.fisopt.fill_frames.default: fill_frames.reference,
    torch.ops.fisopt.tile_attention.default: tile_attention.reference,
    torch.ops.fisopt.match_tokens.default: match_tokens.reference,
    torch.ops.fisopt.reduce_tokens.default: reduce_tokens.reference,
    torch.ops.fisopt.restore_tokens.default: restore_tokens.reference,
    torch.ops.fisopt.reduce_attend_restore.default: reduce_attend_restore.reference,
}

AXIS_RULES: dict[Any, Callable[[fx.Node], Axes]] = {
    torch.ops.fisopt.gather_frames.default: gather_frames.axes,
    torch.ops.fisopt.fill_frames.default: fill_frames.axes,
    torch.ops.fisopt.tile_attention.default: tile_attention.axes,
    torch.ops.fisopt.match_tokens.default: match_tokens.axes,
    torch.ops.fisopt.reduce_tokens.default: reduce_tokens.axes,
    torch.ops.fisopt.restore_tokens.default: restore_tokens.axes,
    torch.ops.fisopt.reduce_attend_restore.default: reduce_attend_restore.axes,
}

OPAQUE: frozenset[Any] = frozenset(
    [
        torch.ops.fisopt.match_tokens.default,
        torch.ops.fisopt.tile_attention.default,
        torch.ops.fisopt.reduce_attend_restore.default,
    ]
)
"""Operators that stay a call when a graph is compiled: traced, their loops would be unrolled."""

PLANNED: dict[Any, tuple[Callable[..., Any], tuple[int, ...]]] = {
    torch.ops.fisopt.tile_attention.default: (tile_attention.planned, (4, 5)),
}
"""Operators that read a plan: what they do with a known one, and which arguments are the plan."""
