"""gather_frames: keep some latent frames of one tensor dimension; text beside them stays.

The dimension is ``before`` entries, then a row-major [outer, frames, inner] block of video,
then the rest.  ``y`` holds the same with only the frames of ``index``.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator


def _axes(node: fx.Node) -> Axes:
    """Axis rule: the gathered dimension holds as many frames as the index."""
    x, dim, index = node.args[:3]
    assert isinstance(x, fx.Node)
    assert isinstance(index, fx.Node)
    count = index.meta["val"].shape[0]
    return tuple(
        axis.at(count) if d == dim and axis is not None else axis
        for d, axis in enumerate(axes_of(x))
    )


@operator("fisopt::gather_frames", axes=_axes, moves=("x",), selects="x")
def gather_frames(
    x: Tensor, dim: int, index: Tensor, outer: int, inner: int, before: int, after: int
) -> Tensor:
    """Gather frames in plain torch.

    Shapes: x [..., before + outer*F*inner + after, ...]; index [K] int64, in [0, F).
    Returns: y [..., before + outer*K*inner + after, ...].
    """
    size = x.shape[dim]
    video = x.narrow(dim, before, size - before - after)
    frames = video.shape[dim] // (outer * inner)
    kept = torch.unflatten(video, dim, (outer, frames, inner)).index_select(dim + 1, index)
    kept = kept.flatten(dim, dim + 2)
    if before == 0 and after == 0:
        return kept
    head, tail = x.narrow(dim, 0, before), x.narrow(dim, size - after, after)
    return torch.cat([head, kept, tail], dim)
