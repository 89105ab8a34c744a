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

    Every dimension that carries the video is taken on the same part of it.  Text beside the video
    stays whole.
    """

    @property
    @abstractmethod
    def has_ends(self) -> bool:
        """Whether the first and the last frame are in it."""

    @property
    def items(self) -> int | None:
        """How many items of a batch have parts of their own, None if one is for all."""
        return None

    @property
    def exact(self) -> bool:
        """Whether what is taken of a spread value is what was spread, to the bit."""
        return False

    @abstractmethod
    def grids(self, layout: TokenLayout) -> Sequence[TokenLayout]:
        """Token grids of as many tokens, the best first: a block's sizes are read at one."""

    @abstractmethod
    def covers(self, axis: FrameAxis) -> bool:
        """Whether it says which entries of such a dimension to take."""

    @abstractmethod
    def axis(self, axis: FrameAxis) -> FrameAxis | None:
        """The frames of a dimension of which it was taken, None if it has frames no more."""

    @abstractmethod
    def shape(self, sizes: Sequence[int], dim: int, axis: FrameAxis) -> list[int]:
        """The sizes of a value of which it was taken along a dimension."""

    @abstractmethod
    def gather(self, editor: Editor, node: fx.Node, dim: int, axis: FrameAxis) -> fx.Node:
        """Take it of one dimension."""

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
        """Make one dimension whole."""

    def take(self, editor: Editor, node: fx.Node, dims: Collection[int] | None = None) -> fx.Node:
        """The entries of a value that belong to it, of every dimension that carries the video.

        A value is taken once, however often it is asked for.

        Args:
            editor: where: around the blocks, or inside one.
            node: the value, whole.
            dims: only these dimensions.

        Raises:
            PassError: it does not say which entries those are.
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
        """Make a value whole of which only this part was computed.

        Taking an exact part of the result gives the piece, so that nothing moves between two
        blocks on one part, and what nobody else reads is not made whole.

        Args:
            editor: where: around the blocks, or inside one.
            piece: what was computed.
            axes: of the same value where it is whole.
            full: what the value was before, whole: the rest is made from it.
            fill: how; "residual" for frames and "carry" for tokens if not given.
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
