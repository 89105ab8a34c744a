"""Collectives as nodes of a graph: what ranks hold is gathered, taken or exchanged.

They are the functional ones of torch, which Inductor compiles, and moves to where they overlap.
A graph says the group by its name, and is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.passes.sharding.shard import Shard, part
from fisopt.rewrite.axes import Axes, FrameAxis, axes_of
from fisopt.rewrite.edit.editor import Editing
from fisopt.rewrite.ops.declare import operator

aten, functional = torch.ops.aten, torch.ops._c10d_functional


def _sent(x: Any, ranks: int) -> float:
    return float(x.numel() * x.element_size() * (ranks - 1))


def _no_axes(node: fx.Node) -> Axes:
    del node
    return ()


def _as_before(node: fx.Node) -> Axes:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return axes_of(operand)


operator(
    functional.all_to_all_single.default,
    axes=_as_before,
    sends=lambda x, takes, gives, group: _sent(x, len(takes)) / len(takes),
)
operator(
    functional.all_gather_into_tensor.default,
    axes=_no_axes,
    sends=lambda x, ranks, group: _sent(x, ranks),
)
operator(
    functional.broadcast.default,
    axes=_as_before,
    sends=lambda x, rank, group: float(x.numel() * x.element_size()),
)
operator(functional.wait_tensor.default, axes=_as_before)


@dataclass(frozen=True)
class Ranks:
    """Some ranks that share the work.

    Attributes:
        count: how many.
        group: the name by which torch knows them.
    """

    count: int
    group: str

    def number(self, editor: Editing, device: torch.device) -> fx.Node:
        """This rank's own number, int64 [1]: what each rank is sent by the first one."""
        every = editor.call(aten.arange.default, self.count, device=device, axes=())
        sent = self._all_to_all(editor, every)
        return editor.call(aten.slice.Tensor, sent, 0, 0, 1, axes=())

    def same(self, editor: Editing, x: fx.Node) -> fx.Node:
        """What the first rank has of a value."""
        sent = editor.call(functional.broadcast.default, x, 0, self.group, axes=axes_of(x))
        return editor.call(functional.wait_tensor.default, sent, axes=axes_of(x))

    def whole(self, editor: Editing, x: fx.Node, shard: Shard) -> fx.Node:
        """The whole of a value of which each rank holds a part."""
        d, axis = shard.dim, shard.axis
        held = part(axis.frames, self.count)
        head, x, tail = _pieces(editor, x, d, shard.local(self.count))
        before, after = _sizes(x)[:d], _sizes(x)[d + 1 :]
        x = _contiguous(editor, x)
        x = editor.call(
            functional.all_gather_into_tensor.default, x, self.count, self.group, axes=()
        )
        x = editor.call(functional.wait_tensor.default, x, axes=())
        x = _reshape(editor, x, [self.count, *before, axis.outer, held, axis.inner, *after])
        lead = range(1, d + 2)
        x = _permute(editor, x, [*lead, 0, *range(d + 2, len(_sizes(x)))])
        x = _reshape(editor, x, [*before, axis.outer, self.count * held, axis.inner, *after])
        if self.count * held > axis.frames:
            x = editor.call(aten.slice.Tensor, x, d + 1, 0, axis.frames, axes=())
        x = _reshape(editor, x, [*before, axis.video, *after])
        return _joined(editor, [*head, x, *tail], d)

    def exchange(
        self, editor: Editing, x: fx.Node, old: Shard, new: Shard, index: Callable[[], fx.Node]
    ) -> fx.Node:
        """What a rank holds if another dimension is divided instead; one of them is pure.

        Args:
            editor: where new nodes go.
            x: what it holds now.
            old: the dimension that is divided now.
            new: the one to divide.
            index: makes the positions of the rank's entries of the new one.
        """
        to_pure = new.axis.pure
        mixed, local = (old, old.local(self.count)) if to_pure else (new, new.axis)
        head, video, tail = _pieces(editor, x, mixed.dim, local)
        if to_pure:
            ends = [[own(editor, t, new, index()) for t in text] for text in (head, tail)]
        else:
            ends = [[self.whole(editor, t, old) for t in text] for text in (head, tail)]
        moved = self._exchanged(editor, video, old, new)
        return _joined(editor, [*ends[0], moved, *ends[1]], mixed.dim)

    def _exchanged(self, editor: Editing, x: fx.Node, old: Shard, new: Shard) -> fx.Node:
        """The exchange of what is divided; dimensions are cut, and followed by names."""
        ranks, a, b = self.count, old.axis, new.axis
        held, every = part(b.frames, ranks), ranks * part(a.frames, ranks)
        sizes: dict[Hashable, int] = dict(enumerate(_sizes(x)))
        cut: dict[Hashable, int] = {
            "a1": a.outer,
            "a2": every // ranks,
            "a3": a.inner,
            "ranks": ranks,
        }
        named: dict[Hashable, int] = {**sizes, **cut, "b1": b.outer, "b2": held, "b3": b.inner}

        def order(old_dim: list[Hashable], new_dim: list[Hashable]) -> list[Hashable]:
            by_dim: dict[Hashable, list[Hashable]] = {old.dim: old_dim, new.dim: new_dim}
            return [name for d in sizes for name in by_dim.get(d, [d])]

        x = self._filled(editor, x, new)
        given = order(["a1", "a2", "a3"], ["b1", "ranks", "b2", "b3"])
        sent = ["ranks", *(n for n in given if n != "ranks")]
        wanted = order(["a1", "ranks", "a2", "a3"], ["b1", "b2", "b3"])
        x = _reshape(editor, x, [named[n] for n in given])
        x = _permute(editor, x, [given.index(n) for n in sent])
        x = self._all_to_all(editor, _contiguous(editor, x))
        x = _permute(editor, x, [sent.index(n) for n in wanted])
        result = [*sizes.values()]
        result[new.dim] = new.local(ranks).video
        before, after = result[: old.dim], result[old.dim + 1 :]
        x = _reshape(editor, x, [*before, a.outer, every, a.inner, *after])
        if every > a.frames:
            x = editor.call(aten.slice.Tensor, x, old.dim + 1, 0, a.frames, axes=())
        return _reshape(editor, x, [*before, a.video, *after])

    def _filled(self, editor: Editing, x: fx.Node, shard: Shard) -> fx.Node:
        """Repeat the last of some entries until the ranks divide them."""
        axis, sizes = shard.axis, _sizes(x)
        missing = self.count * part(axis.frames, self.count) - axis.frames
        if not missing:
            return x
        before, after = sizes[: shard.dim], sizes[shard.dim + 1 :]
        x = _reshape(editor, x, [*before, axis.outer, axis.frames, axis.inner, *after])
        end = (shard.dim + 1, axis.frames - 1, axis.frames)
        last = editor.call(aten.slice.Tensor, x, *end, axes=())
        more = [*before, axis.outer, missing, axis.inner, *after]
        last = editor.call(aten.expand.default, last, more, axes=())
        return editor.call(aten.cat.default, [x, last], shard.dim + 1, axes=())

    def _all_to_all(self, editor: Editing, x: fx.Node) -> fx.Node:
        each = [1] * self.count
        x = editor.call(functional.all_to_all_single.default, x, each, each, self.group, axes=())
        return editor.call(functional.wait_tensor.default, x, axes=())


def own(editor: Editing, x: fx.Node, shard: Shard, index: fx.Node) -> fx.Node:
    """A rank's part of a value that it has whole, by the positions of its entries."""
    return editor.call(aten.index_select.default, x, shard.dim, index, axes=())


def _pieces(
    editor: Editing, x: fx.Node, dim: int, axis: FrameAxis
) -> tuple[list[fx.Node], fx.Node, list[fx.Node]]:
    """What lies before the entries of an axis, these, and what lies after; only what there is."""

    def piece(start: int, end: int) -> fx.Node:
        return editor.call(aten.slice.Tensor, x, dim, start, end, axes=())

    end = axis.before + axis.video
    head = [piece(0, axis.before)] if axis.before else []
    tail = [piece(end, axis.size)] if axis.after else []
    return head, piece(axis.before, end) if head or tail else x, tail


def _joined(editor: Editing, pieces: list[fx.Node], dim: int) -> fx.Node:
    return editor.call(aten.cat.default, pieces, dim, axes=()) if len(pieces) > 1 else pieces[0]


def _sizes(x: fx.Node) -> list[int]:
    return list(x.meta["val"].shape)


def _reshape(editor: Editing, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
    return editor.call(aten.reshape.default, x, list(sizes), axes=())


def _permute(editor: Editing, x: fx.Node, dims: Sequence[int]) -> fx.Node:
    return editor.call(aten.permute.default, x, list(dims), axes=())


def _contiguous(editor: Editing, x: fx.Node) -> fx.Node:
    """Collectives send memory as it lies."""
    return editor.call(aten.clone.default, x, memory_format=torch.contiguous_format, axes=())
