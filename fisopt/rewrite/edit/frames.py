"""Frames: some latent frames of the video, and how the others are made from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from fisopt.errors import OptionError, shown
from fisopt.rewrite.axes import FrameAxis, TokenLayout
from fisopt.rewrite.edit.editor import Editor
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.ops.fill_frames import Fill


def interpolation(
    anchors: Sequence[int], frames: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Linear interpolation in time between anchors.

    Returns:
        left, right [frames] int64: positions in ``anchors`` of the neighbours of each frame;
        weight [frames] float32 of the right one, 0 exactly at the anchors.
    """
    known = torch.tensor(anchors)
    time = torch.arange(frames)
    left = torch.searchsorted(known, time, right=True) - 1
    right = torch.clamp(left + 1, max=len(anchors) - 1)
    span = (known[right] - known[left]).clamp(min=1)
    weight = (time - known[left]) / span
    return left, torch.where(weight == 0, left, right), weight.to(torch.float32)


@dataclass(frozen=True)
class Frames(Subset):
    """Some latent frames, including the first and the last; every other frame lies between two.

    Attributes:
        kept: the frames, in order.
        of: the number of all frames.
        label: name of the constants with the frame indices; made from the frames by default.
    """

    kept: tuple[int, ...]
    of: int
    label: str = ""

    def __post_init__(self) -> None:
        kept = tuple(self.kept)
        inside = kept and kept[0] == 0 and kept[-1] == self.of - 1
        if not inside or any(a >= b for a, b in itertools.pairwise(kept)):
            raise OptionError(
                f"Frames: got {shown(kept)} of {self.of} frames; wanted frames in order, the first "
                f"(0) and the last ({self.of - 1}) among them"
            )
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "label", self.label or f"{'_'.join(map(str, kept))}_of{self.of}")

    def __str__(self) -> str:
        return f"frames {', '.join(map(str, self.kept))} of {self.of}"

    @property
    def has_ends(self) -> bool:
        """True: the first and the last frame are anchors."""
        return True

    def grids(self, layout: TokenLayout) -> Sequence[TokenLayout]:
        """The grid with this many frames."""
        return [replace(layout, frames=len(self.kept))]

    def covers(self, axis: FrameAxis) -> bool:
        """True for any dimension with all frames."""
        return axis.frames == self.of

    def axis(self, axis: FrameAxis) -> FrameAxis:
        """See `Subset.axis`."""
        return axis.at(len(self.kept))

    def shape(self, sizes: Sequence[int], dim: int, axis: FrameAxis) -> list[int]:
        """See `Subset.shape`."""
        return [*sizes[:dim], self.axis(axis).size, *sizes[dim + 1 :]]

    def gather(self, editor: Editor, node: fx.Node, dim: int, axis: FrameAxis) -> fx.Node:
        """See `Subset.gather`."""
        index = self._table(editor, node, "anchors")
        place = (axis.outer, axis.inner, axis.before, axis.after)
        return editor.call(torch.ops.fisopt.gather_frames.default, node, dim, index, *place)

    def scatter(
        self,
        editor: Editor,
        piece: fx.Node,
        dim: int,
        axis: FrameAxis,
        full: fx.Node | None,
        fill: Fill | None,
    ) -> fx.Node:
        """Fill the skipped frames; see `fisopt.rewrite.ops.fill_frames`."""
        fill = fill or "residual"
        names = ("anchors", "left", "right", "weight")
        tables = [self._table(editor, piece, name) for name in names]
        place = (axis.outer, axis.inner, axis.before, axis.after)
        operands = (None if fill == "state" else full, piece, dim, *tables, *place, fill)
        return editor.call(torch.ops.fisopt.fill_frames.default, *operands)

    def _table(self, editor: Editor, like: fx.Node, name: str) -> fx.Node:
        """A constant that says which frames they are, or how those between them are made."""
        device = like.meta["val"].device

        def make() -> fx.Node:
            left, right, weight = interpolation(self.kept, self.of)
            tables = {
                "anchors": torch.tensor(self.kept),
                "left": left,
                "right": right,
                "weight": weight,
            }
            constant = tables[name].to(device)
            return editor.buffer(f"{name}_{self.label}", constant, f"frames_{name}")

        return editor.once((self, name, device), make)
