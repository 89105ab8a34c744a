"""Read back: what a model reads of a cache that it has just written, as past and new joined.

A functional graph writes ``scatter(cache, new, from, to)`` and reads a slice of that.  The same
values are the cache up to ``from``, then what is new: so it is known where the frames are among the
keys, and nothing is copied that nobody reads.  It is also one form for a cache with room and for
one that is full, of which torch takes no slice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.relations.cut import bounds
from fisopt.rewrite.relations.table import argument, operand_of, shape, wrap
from fisopt.rewrite.tracing.block_paths import BLOCK
from fisopt.rewrite.tracing.writes import mutates

aten = torch.ops.aten
Make = Callable[..., fx.Node]
_PART, _ROW = aten.slice_scatter.default, aten.select_scatter.default
_MOVES = {_PART, _ROW, aten.slice.Tensor, aten.select.int, aten.reshape.default}


def read_back(
    graph: fx.Graph, make: Callable[[fx.Node], Make], video: Collection[fx.Node] = ()
) -> None:
    """Let what reads a written cache read the past and what is new.

    Args:
        graph: a flat graph; what is written into inputs and buffers is copied at its end.
        make: for a node, what inserts an operator of its block before it.
        video: inputs that hold the video itself, which are no caches.
    """
    held = {node.args[0] for node in graph.nodes if mutates(node)}.difference(video)
    if not held:
        return
    for node in graph.nodes:
        if node.target in _MOVES and _root(node) in held:
            held.add(node)
    reads = _Reads(held, make)
    for node in list(graph.nodes):
        reads.of(node)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or mutates(n))


def _root(node: fx.Node) -> Any:
    """The operand that a write or a view is of."""
    return node.args[0] if node.args else None


class _Reads:
    """Rewrites readers in order."""

    def __init__(self, held: set[Any], make: Callable[[fx.Node], Make]) -> None:
        self._held, self._maker = held, make
        self._whole: dict[tuple[fx.Node, Any], fx.Node] = {}

    def of(self, node: fx.Node) -> None:
        """Rewrite a node that reads a written cache."""
        if node.op != "call_function" or mutates(node):
            return
        source = _root(node)
        if node.target is aten.slice.Tensor and self._written(source):
            self._slice(node, source)
        elif node.target is aten.select.int and self._written(source):
            self._select(node, source)
        elif node.target not in (_PART, _ROW):
            for operand in node.all_input_nodes:
                if operand.target is _PART and self._written(operand):
                    node.replace_input_with(operand, self._read_whole(node, operand))

    def _written(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node in self._held and node.target in (_PART, _ROW)

    def _slice(self, node: fx.Node, source: fx.Node) -> None:
        dim = wrap(argument(node, 1, "dim", 0), len(shape(source)))
        if argument(node, 4, "step", 1) != 1 or source.target is not _PART:
            return
        ends = bounds(argument(node, 2, "start"), argument(node, 3, "end"), shape(source)[dim])
        node.replace_all_uses_with(self._part(self._maker(node), source, dim, *ends))

    def _select(self, node: fx.Node, source: fx.Node) -> None:
        if source.target is not _ROW or source.args[2] != node.args[1]:
            return
        size = shape(source)[int(source.args[2])]  # type: ignore[arg-type]
        row, wanted = (wrap(int(n.args[i]), size) for n, i in ((source, 3), (node, 2)))  # type: ignore[arg-type]
        if row == wanted:
            node.replace_all_uses_with(operand_of(source, 1))
        else:
            node.replace_input_with(source, operand_of(source, 0))
            self.of(node)

    def _read_whole(self, user: fx.Node, source: fx.Node) -> fx.Node:
        key = source, user.meta.get(BLOCK)
        if key not in self._whole:
            dim = wrap(argument(source, 2, "dim", 0), len(shape(source)))
            make, size = self._maker(user), shape(source)[dim]
            self._whole[key] = self._part(make, source, dim, 0, size)
        return self._whole[key]

    def _part(self, make: Make, source: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        """Some entries of a cache, along one dimension."""
        if not self._cuts(source, dim):
            return _cut(make, source, dim, start, end)
        base, new = operand_of(source, 0), operand_of(source, 1)
        first, last = bounds(
            argument(source, 3, "start"), argument(source, 4, "end"), shape(source)[dim]
        )
        parts = []
        if start < min(first, end):
            parts.append(self._part(make, base, dim, start, min(first, end)))
        if max(first, start) < min(last, end):
            here = max(first, start) - first, min(last, end) - first
            parts.append(_cut(make, new, dim, *here))
        if max(last, start) < end:
            parts.append(self._part(make, base, dim, max(last, start), end))
        return parts[0] if len(parts) == 1 else make(aten.cat.default, parts, dim)

    def _cuts(self, source: fx.Node, dim: int) -> bool:
        """Whether a cache is written along a dimension, without gaps."""
        return (
            self._written(source)
            and source.target is _PART
            and argument(source, 5, "step", 1) == 1
            and wrap(argument(source, 2, "dim", 0), len(shape(source))) == dim
        )


def _cut(make: Make, node: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    size = shape(node)[dim]
    if (start, end) == (0, size):
        return node
    bound = () if end == size else (end,)
    return make(aten.slice.Tensor, node, dim, start or None, *bound)
