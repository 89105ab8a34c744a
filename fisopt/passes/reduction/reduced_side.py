"""What is left out of one attention: of its queries, or of its keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fisopt.passes.reduction.features import Feature
from fisopt.rewrite.axes import TokenLayout, axes_of
from fisopt.rewrite.partition import Cells, destination_count


@dataclass(frozen=True)
class Side:
    """The queries, or the keys and values, of one attention, and what stays of them.

    Attributes:
        feature: which of the two.
        node: what is matched, [..., before + tokens + after, width].
        grid: frames, rows and columns of its tokens.
        stride: the cells of the grid.
        frames: frames of its sequence dimension, 0 if that carries none.
        before: entries of text before the tokens.
        after: entries of text after the tokens.
        keep: how many sources stay.
    """

    feature: Feature
    node: fx.Node
    grid: Cells
    stride: Cells
    frames: int
    before: int
    after: int
    keep: int

    @property
    def length(self) -> int:
        """Entries that stay, text included."""
        return self.before + destination_count(self.grid, self.stride) + self.keep + self.after


def grid_of(
    node: fx.Node, layout: TokenLayout, stride: Cells
) -> tuple[Cells, Cells, int, int, int] | str:
    """Token grid, cells, frames and text of a sequence [..., S, D], or why it has no grid.

    An attention that sees one frame, or one place in all frames, has a grid of that; a cell
    reaches as far as the grid along what the attention does not see.
    """
    axes, size = axes_of(node), int(node.meta["val"].shape[-2])
    axis = axes[-2] if len(axes) >= 2 else None
    if axis is None:
        if size == 1:  # over the frames of a single frame: there is nothing to leave out
            return (1, 1, 1), (1, 1, 1), 0, 0, 0
        if size != layout.tokens_per_frame:
            return (
                f"its sequence of {size} is neither the video's tokens nor one frame's: which of "
                f"them are the {layout} tokens is unknown"
            )
        return (1, layout.height, layout.width), (1, *stride[1:]), 0, 0, 0
    frames, before, after = axis.frames, axis.before, axis.after
    if axis.outer == 1 and axis.inner == layout.tokens_per_frame:
        cells = stride if frames > 1 else (1, *stride[1:])
        return (frames, layout.height, layout.width), cells, frames, before, after
    if axis.outer == axis.inner == 1:
        return (frames, 1, 1), (stride[0], 1, 1), frames, before, after
    return f"its sequence is {axis}, not the tokens of {layout} frame by frame"
