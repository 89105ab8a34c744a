"""fill_frames: spread a result computed on the anchor frames over all latent frames.

With x the value before, y_A the result on the anchors A and l(f), r(f) the anchors around f:

    residual:  h[A] = y_A,  h[f] = x[f] + lerp((y - x)[l(f)], (y - x)[r(f)], w(f))
    carry:     h[A] = y_A,  h[f] = x[f]
    state:     h[A] = y_A,  h[f] = lerp(y[l(f)], y[r(f)], w(f))

Without x (a region that no residual edge crosses) x counts as zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator

Fill = Literal["residual", "carry", "state"]
FILLS: tuple[Fill, ...] = ("residual", "carry", "state")


def _axes(node: fx.Node) -> Axes:
    """Axis rule: the filled dimension holds every frame again."""
    kept, dim, weight = node.args[1], node.args[2], node.args[6]
    assert isinstance(kept, fx.Node)
    assert isinstance(weight, fx.Node)
    count = weight.meta["val"].shape[0]
    return tuple(
        axis.at(count) if d == dim and axis is not None else axis
        for d, axis in enumerate(axes_of(kept))
    )


@operator("fisopt::fill_frames", axes=_axes, moves=("full", "kept"), restores="kept")
def fill_frames(
    full: Tensor | None,
    kept: Tensor,
    dim: int,
    anchors: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    outer: int,
    inner: int,
    before: int,
    after: int,
    fill: str,
) -> Tensor:
    """Fill the skipped frames in plain torch.

    Shapes: full [..., before + outer*F*inner + after, ...] or None; kept the same with K
        frames; anchors [K] int64, the frames of ``kept``, increasing; left, right [F] int64,
        positions in ``anchors``; weight [F] float32, 0 exactly at the anchors.
    Returns: all frames, in kept's dtype; text comes from ``kept``.  The interpolation is
        computed in float32 at least.
    """
    size = kept.shape[dim]
    video = kept.narrow(dim, before, size - before - after)
    y = torch.unflatten(video, dim, (outer, anchors.shape[0], inner))
    axis = dim + 1
    wide = torch.promote_types(kept.dtype, torch.float32)
    sizes = [1] * y.ndim
    sizes[axis] = weight.shape[0]
    w = weight.to(wide).reshape(sizes)
    base = None
    if full is not None:
        whole = full.narrow(dim, before, full.shape[dim] - before - after)
        base = torch.unflatten(whole, dim, (outer, weight.shape[0], inner))
    if fill == "carry":
        skipped = torch.zeros_like(y).index_select(axis, left) if base is None else base
    else:
        source = y.to(wide)
        if base is not None and fill == "residual":
            source = source - base.index_select(axis, anchors).to(wide)
        skipped = torch.lerp(source.index_select(axis, left), source.index_select(axis, right), w)
        if base is not None and fill == "residual":
            skipped = skipped + base.to(wide)
    exact = y.index_select(axis, left)
    result = torch.where(w == 0, exact, skipped.to(kept.dtype)).flatten(dim, dim + 2)
    if before == 0 and after == 0:
        return result.contiguous()
    return torch.cat(
        [kept.narrow(dim, 0, before), result, kept.narrow(dim, size - after, after)], dim
    )
