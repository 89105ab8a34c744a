"""Which entries of a mask are True whatever it is computed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fisopt.rewrite.ops.gather_frames import gather_frames

aten = torch.ops.aten
_MONOTONE = {
    *(aten.pad.default, aten.constant_pad_nd.default, aten.cat.default),
    *(aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim),
    *(aten.expand.default, aten.transpose.int, aten.permute.default, aten.slice.Tensor),
    *(aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default),
    *(aten.ones.default, aten.full.default, aten.scalar_tensor.default),
    *(aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default),
    *(aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default),
}
"""Operators whose results only turn True where operands do: with every unknown operand False they
say what is always True."""


def always_seen(mask: fx.Node) -> Tensor | None:
    """What is True of a mask whatever the values are that its graph is called with.

    Returns:
        A boolean tensor on the CPU that broadcasts to the mask, True where that is proved; None
        for a mask of numbers.
    """
    value: Tensor = mask.meta["val"]
    return _proved(mask, {}) if value.dtype == torch.bool else None


def _proved(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
    if node not in known:
        known[node] = _computed(node, known)
    return known[node]


def _computed(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
    shape = node.meta["val"].shape
    nothing = torch.zeros((), dtype=torch.bool).expand(shape)
    if node.target is gather_frames.target:
        return _gathered(node, known)
    operands = node.all_input_nodes
    if node.target not in _MONOTONE or any(not _is_boolean(n) for n in operands):
        return nothing
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _proved(n, known))
    kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")}
    target: Any = node.target
    result: Tensor = target(*args, **kwargs)
    return result.bool()


def _gathered(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
    """Frames of a mask that any index may choose: what all frames have."""
    arguments: Any = node.args
    x, dim, _, outer, inner, before, after = arguments
    whole = _proved(x, known).movedim(dim, -1)
    video = whole[..., before : whole.shape[-1] - after]
    video = torch.unflatten(video, -1, (outer, -1, inner))
    count = node.meta["val"].shape[dim] - before - after
    every = video.all(-2, keepdim=True).expand(*video.shape[:-2], count // (outer * inner), inner)
    parts = (whole[..., :before], every.flatten(-3), whole[..., whole.shape[-1] - after :])
    return torch.cat(parts, -1).movedim(-1, dim)


def _is_boolean(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool
