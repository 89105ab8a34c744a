"""Subset: a part of the video's sequence that a block, or some values of it, are computed on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from torch import fx

from fisopt.rewrite.axes import Axes, FrameAxis, TokenLayout, axes_of
from fisopt.rewrite.edit.editor import PART, Editor
from fisopt.rewrite.ops.fill_frames import Fill


class Subset(ABC):
    """A part of the video's sequence: some frames, some tokens, or the tokens of one rank.

    Taking a subset takes the same part of every dimension that carries the video. Text next to the
    video stays whole.
    """

    @property
    @abstractmethod
    def has_ends(self) -> bool:
        """Whether it includes the first and the last frame."""

    @property
    def items(self) -> int | None:
        """Number of batch items with parts of their own; None if all items share one part."""
        return None

    @property
    def exact(self) -> bool:
        """Whether `take` after `spread` returns the same piece, to the bit."""
        return False

    @abstractmethod
    def grids(self, layout: TokenLayout) -> Sequence[TokenLayout]:
        """Token grids of this many tokens, the best first; fisopt reads a block's sizes at one."""

    @abstractmethod
    def covers(self, axis: FrameAxis) -> bool:
        """Whether the subset defines which entries of such a dimension to take."""

    @abstractmethod
    def axis(self, axis: FrameAxis) -> FrameAxis | None:
        """The frame axis of a dimension after `take`; None if it no longer has frames."""

    @abstractmethod
    def shape(self, sizes: Sequence[int], dim: int, axis: FrameAxis) -> list[int]:
        """The sizes of a value after `take` along a dimension."""

    @abstractmethod
    def gather(self, editor: Editor, node: fx.Node, dim: int, axis: FrameAxis) -> fx.Node:
        """Take the subset of one dimension."""

    @abstractmethod
    def scatter(
        self,
        editor: Editor,
        piece: fx.Node,
        dim: int,
        axis: FrameAxis,
        full: fx.Node | None,
        fill: Fill | None,
    ) -> fx.Node:
        """Make one dimension whole again."""

    def take(self, editor: Editor, node: fx.Node, dims: Collection[int] | None = None) -> fx.Node:
        """Take the subset's entries of a value, along every dimension that carries the video.

        Repeated calls for the same value return one node.

        Args:
            editor: where: around the blocks, or inside one.
            node: the value, whole.
            dims: only these dimensions.

        Raises:
            PassError: the subset does not define which entries those are.
        """
        axes = axes_of(node)
        chosen = tuple(d for d, a in enumerate(axes) if a and (dims is None or d in dims))

        def make() -> fx.Node:
            taken = node
            for d in chosen:
                axis = axes[d]
                assert axis is not None
                taken = self.gather(editor, taken, d, axis)
                taken.meta[PART] = {**node.meta.get(PART, {}), **dict.fromkeys(chosen, self)}
            return taken

        return editor.once((self, node, chosen), make)

    def spread(
        self,
        editor: Editor,
        piece: fx.Node,
        axes: Axes,
        full: fx.Node | None = None,
        fill: Fill | None = None,
    ) -> fx.Node:
        """Make a value whole after only this part of it was computed.

        Taking an exact part that was spread returns the piece. So no tokens move between two
        blocks on one part, and a value that nothing else reads never becomes whole.

        Args:
            editor: where: around the blocks, or inside one.
            piece: the computed part.
            axes: frame axes of the whole value.
            full: the whole value from before, from which the rest is filled.
            fill: how to fill the rest; by default "residual" for frames and "carry" for tokens.
        """
        whole, dims = piece, tuple(d for d, axis in enumerate(axes) if axis is not None)
        for d in dims:
            axis = axes[d]
            assert axis is not None
            whole = self.scatter(editor, whole, d, axis, full, fill)
        if self.exact:
            piece.meta[PART] = {**piece.meta.get(PART, {}), **dict.fromkeys(dims, self)}
            editor.know((self, whole, dims), piece)
        return whole
