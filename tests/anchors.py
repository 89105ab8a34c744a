"""Frames as plain loops: rows of tokens, and the update of frames that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def rows(frames: Iterable[int], inner: int, before: int = 0) -> Tensor:
    """Indices of the tokens of some frames, and of so many tokens before the first."""
    places = [before + f * inner + i for f in frames for i in range(inner)]
    return torch.tensor([*range(before), *places])


def spread(x: Tensor, y: Tensor, kept: Sequence[int], inner: int) -> Tensor:
    """All frames, their update linear between the anchors around them.

    Args:
        x: tokens of every frame before a block, [B, frames * inner, features].
        y: tokens of the anchors after it.
        kept: the anchors.
        inner: tokens of a frame.
    """
    update = (y - x[:, rows(kept, inner)]).unflatten(1, (len(kept), inner))
    frames = []
    for f in range(x.shape[1] // inner):
        left, right = max(k for k in kept if k <= f), min(k for k in kept if k >= f)
        w = (f - left) / (right - left) if right > left else 0.0
        a, b = update[:, kept.index(left)], update[:, kept.index(right)]
        frames.append((1 - w) * a + w * b)
    return x + torch.cat(frames, 1)
