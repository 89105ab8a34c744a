"""Tokens: some tokens of the video, each item of a batch its own or all the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fisopt.errors import OptionError, PassError
from fisopt.rewrite.axes import Axes, FrameAxis, TokenLayout, axes_of, set_axes
from fisopt.rewrite.edit.editor import Editor
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.ops.fill_frames import Fill

aten = torch.ops.aten
_TRIED = 3


@dataclass(frozen=True)
class Tokens(Subset):
    """Some tokens of the video, chosen when the model runs or by a constant.

    A block computes them as if there were no others. The result no longer has frames, unless
    ``grid`` gives the tokens' layout: then token ``t`` belongs to frame ``t // (height * width)``
    of that grid.

    Attributes:
        index: a node outside the blocks: positions of tokens, int64 [K], or [items, K] if every
            batch item has its own.
        layout: the grid of all tokens.
        grid: the grid that the K tokens form, such as a shard of every frame.
    """

    index: fx.Node
    layout: TokenLayout
    grid: TokenLayout | None = None

    def __post_init__(self) -> None:
        sizes = tuple(self.index.meta["val"].shape)
        if len(sizes) not in (1, 2) or self.index.meta["val"].dtype != torch.int64:
            raise OptionError(
                f"Tokens: got an index {list(sizes)} of {self.index.meta['val'].dtype}, wanted "
                "int64 [tokens] or [items, tokens]"
            )
        if self.grid is not None and self.grid.tokens != self.count:
            raise OptionError(f"Tokens: {self.count} tokens are no grid {self.grid}")

    def __str__(self) -> str:
        return f"{self.count} of {self.layout.tokens} tokens ({self.index})"

    @property
    def count(self) -> int:
        """The number of tokens, K."""
        return int(self.index.meta["val"].shape[-1])

    @property
    def items(self) -> int | None:
        """Number of batch items with tokens of their own; None if all items share them."""
        sizes = self.index.meta["val"].shape
        return int(sizes[0]) if len(sizes) == 2 else None

    @property
    def has_ends(self) -> bool:
        """False: the positions are unknown before the model runs."""
        return False

    @property
    def exact(self) -> bool:
        """True: `scatter` writes the tokens to the positions that `gather` read."""
        return True

    def grids(self, layout: TokenLayout) -> Sequence[TokenLayout]:
        """Their own grid, or grids of K tokens; a size of 1, special to models, comes last."""
        if self.grid is not None:
            return [self.grid]
        factors = [n for n in range(1, self.count + 1) if self.count % n == 0]
        found = [
            TokenLayout(f, h, self.count // (f * h))
            for f, h in itertools.product(factors, factors)
            if self.count % (f * h) == 0
        ]

        def order(grid: TokenLayout) -> tuple[int, int, int]:
            sizes = (grid.frames, grid.height, grid.width)
            return sizes.count(1), max(sizes), -grid.frames

        return [*sorted(found, key=order)[:_TRIED], TokenLayout(self.count, 1, 1)]

    def covers(self, axis: FrameAxis) -> bool:
        """True for a dimension with all tokens."""
        whole = (axis.frames, axis.inner) == (self.layout.frames, self.layout.tokens_per_frame)
        return whole and axis.outer == 1

    def axis(self, axis: FrameAxis) -> FrameAxis | None:
        """See `Subset.axis`."""
        if self.grid is None:
            return None
        return FrameAxis(self.grid.frames, 1, self.grid.tokens_per_frame, axis.before, axis.after)

    def shape(self, sizes: Sequence[int], dim: int, axis: FrameAxis) -> list[int]:
        """See `Subset.shape`."""
        taken = [*sizes[:dim], axis.before + self.count + axis.after, *sizes[dim + 1 :]]
        return [self.items, *taken[1:]] if self.items is not None and dim > 0 else taken

    def gather(self, editor: Editor, node: fx.Node, dim: int, axis: FrameAxis) -> fx.Node:
        """See `Subset.gather`."""
        self._check(editor, node, dim, axis)
        sizes, index = list(node.meta["val"].shape), editor.bring(self.index, "tokens")
        if self.items is not None and sizes[0] != self.items:
            node = editor.call(aten.expand.default, node, [self.items, *sizes[1:]])
        axes = axes_of(node)
        without: Axes = (*axes[:dim], None, *axes[dim + 1 :])
        head, video, tail = _parts(editor, node, dim, axis.before, axis.video)
        if self.items is None:
            kept = editor.call(aten.index_select.default, video, dim, index, axes=without)
        else:
            kept = editor.call(torch.ops.fisopt.reduce_tokens.default, video, index, None, dim)
        return self._joined(editor, [*head, kept, *tail], dim, (axes, self.axis(axis)))

    def scatter(
        self,
        editor: Editor,
        piece: fx.Node,
        dim: int,
        axis: FrameAxis,
        full: fx.Node | None,
        fill: Fill | None,
    ) -> fx.Node:
        """Write the tokens to their positions in the previous value, or in zeros."""
        if fill not in (None, "carry"):
            raise PassError(
                f"{self} do not determine the tokens between them, so fill={fill!r} has no "
                "meaning; wanted 'carry'",
                pass_name=editor.pass_name,
                node=piece,
            )
        sizes, index = list(piece.meta["val"].shape), editor.bring(self.index, "tokens")
        if full is None:
            whole = [*sizes[:dim], axis.size, *sizes[dim + 1 :]]
            full = editor.call(aten.new_zeros.default, piece, whole)
        head, video, tail = _parts(editor, piece, dim, axis.before, self.count)
        _, rest, _ = _parts(editor, full, dim, axis.before, axis.video)
        axes: Axes = (*axes_of(piece)[:dim], None, *axes_of(piece)[dim + 1 :])
        pure = (*axes[:dim], FrameAxis(axis.frames, 1, axis.inner), *axes[dim + 1 :])
        if self.items is None:
            written = editor.call(aten.index_copy.default, rest, dim, index, video, axes=pure)
        else:
            lead = [self.items, *[1] * (len(sizes) - 1)]
            lead[dim] = self.count
            places = editor.call(aten.reshape.default, index, lead)
            places = editor.call(aten.expand.default, places, list(video.meta["val"].shape))
            written = editor.call(aten.scatter.src, rest, dim, places, video, axes=pure)
        return self._joined(editor, [*head, written, *tail], dim, (axes, axis))

    def _check(self, editor: Editor, node: fx.Node, dim: int, axis: FrameAxis) -> None:
        sizes = list(node.meta["val"].shape)
        if not self.covers(axis):
            why = f"dimension {dim} is {axis}, not the tokens of {self.layout}"
        elif self.items is not None and (dim == 0 or sizes[0] not in (1, self.items)):
            why = f"each of {self.items} items has tokens of its own, and it has no items"
        else:
            return
        raise PassError(
            f"{self} cannot be taken of {node} {sizes}: {why}",
            pass_name=editor.pass_name,
            node=node,
        )

    def _joined(
        self, editor: Editor, parts: list[fx.Node], dim: int, axes: tuple[Axes, FrameAxis | None]
    ) -> fx.Node:
        """Video and text in one dimension again, with its frames."""
        held, axis = axes
        all_axes: Axes = (*held[:dim], axis, *held[dim + 1 :])
        if len(parts) > 1:
            return editor.call(aten.cat.default, parts, dim, axes=all_axes)
        set_axes(parts[0], all_axes)
        return parts[0]


def _parts(
    editor: Editor, node: fx.Node, dim: int, before: int, video: int
) -> tuple[list[fx.Node], fx.Node, list[fx.Node]]:
    """The text before the video, the video, and the text behind it; text only where there is."""
    size = int(node.meta["val"].shape[dim])
    axes = axes_of(node)
    bare: Axes = (*axes[:dim], None, *axes[dim + 1 :])

    def piece(start: int, end: int) -> fx.Node:
        return editor.call(aten.slice.Tensor, node, dim, start, end, axes=bare)

    end = before + video
    head = [piece(0, before)] if before else []
    tail = [piece(end, size)] if end < size else []
    return head, piece(before, end) if head or tail else node, tail
