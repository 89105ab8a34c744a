"""restore_tokens: give every entry of a sequence the result of the entry that stands for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fisopt.rewrite.axes import Axes, FrameAxis, axes_of
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.reduce_tokens import along, by_lead
from fisopt.rewrite.relations.table import Relation


def frame_axis(origin: fx.Node, frames: int, before: int, after: int) -> FrameAxis | None:
    """The frames of a restored dimension, from the operator's arguments."""
    if not frames:
        return None
    video = origin.meta["val"].shape[-1] - before - after
    return FrameAxis(frames, inner=video // frames, before=before, after=after)


def _axes(node: fx.Node) -> Axes:
    """Axis rule: the restored dimension carries the frames that the arguments say."""
    y, origin, dim, frames, before, after = node.args
    assert isinstance(y, fx.Node)
    assert isinstance(origin, fx.Node)
    assert isinstance(frames, int)
    assert isinstance(before, int)
    assert isinstance(after, int)
    axis = frame_axis(origin, frames, before, after)
    return tuple(axis if d == dim else a for d, a in enumerate(axes_of(y)))


def _relation(node: fx.Node) -> Relation:
    y, origin, dim = node.args[:3]
    assert isinstance(y, fx.Node)
    assert isinstance(origin, fx.Node)
    assert isinstance(dim, int)
    return by_lead(y, [origin], dim)


def _traffic(y: Any, origin: Any, dim: int, *rest: Any) -> float:
    """Every row of the result is read and written."""
    return float(2 * y.numel() // y.shape[dim] * origin.shape[-1] * y.element_size())


@operator("fisopt::restore_tokens", axes=_axes, relation=_relation, restores="y", traffic=_traffic)
def restore_tokens(
    y: Tensor, origin: Tensor, dim: int, frames: int, before: int, after: int
) -> Tensor:
    """Restore in plain torch.

    Shapes: y with L leading dimensions that ``origin`` shares and M entries along ``dim`` >= L;
        origin [..., S] int32, positions in [0, M).
    Args: frames, before, after: the frame axis of the restored dimension, 0 frames if it
        carries none.
    Returns: y with S entries along ``dim``.
    """
    del frames, before, after
    return y.gather(dim, along(y, origin, dim))
