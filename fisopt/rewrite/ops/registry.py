"""The op contracts by operator: references that lowering inlines, axis rules, opaque ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import Axes
from fisopt.rewrite.ops import fill_frames, gather_frames, tile_attention

CONTRACTS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.fisopt.gather_frames.default: gather_frames.reference,
    torch.ops.fisopt.fill_frames.default: fill_frames.reference,
    torch.ops.fisopt.tile_attention.default: tile_attention.reference,
}

AXIS_RULES: dict[Any, Callable[[fx.Node], Axes]] = {
    torch.ops.fisopt.gather_frames.default: gather_frames.axes,
    torch.ops.fisopt.fill_frames.default: fill_frames.axes,
    torch.ops.fisopt.tile_attention.default: tile_attention.axes,
}

OPAQUE: frozenset[Any] = frozenset([torch.ops.fisopt.tile_attention.default])
"""Operators that lowering leaves as calls: traced, they would be unrolled into too many."""
