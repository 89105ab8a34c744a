"""A dimension that is cut, computed part by part in one way, and joined again: computed whole.

A model may modulate the tokens of a given first frame apart from the others and join both, as
HunyuanVideo does in its ``token_replace`` form: ``cat([x[:, :n] * a, x[:, n:] * b], 1)``.  Every
entry is computed from entries of its own position, which a cut through the video hides.  The same
is ``x * where(position < n, a, b)``, which is what the graph says then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.relations.cut import bounds, split_dim
from fisopt.rewrite.relations.table import RULES, argument, operand_of, pointwise, shape, wrap
from fisopt.rewrite.tracing.block_paths import BLOCK
from fisopt.rewrite.tracing.key_masks import Insert

aten = torch.ops.aten


class _UnlikeError(Exception):
    """The parts are not computed in one way."""


def join_parts(graph: fx.Graph, insert_for: Callable[[fx.Node, bool], Insert]) -> None:
    """Compute whole what is computed in one way on consecutive parts of a dimension.

    Features, the last dimension, stay as they are, and so does what is cut and joined with nothing
    between, as text and video are where a block returns both.

    Args:
        graph: a flat graph with values; changed in place.
        insert_for: for a node, what writes an operator of its block before it.
    """
    for node in list(graph.nodes):
        if node.target is not aten.cat.default:
            continue
        parts, dim = node.args[0], wrap(argument(node, 1, "dim", 0), len(shape(node)))
        back = len(shape(node)) - dim
        if len(parts) < 2 or back == 1 or not all(map(_is_pointwise, parts)):
            continue
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + shape(part)[dim])
        insert = insert_for(node, False)
        try:
            plan = _Join(back, tuple(ends), node.meta.get(BLOCK)).plan(tuple(parts))
        except _UnlikeError:
            continue
        whole = plan(insert, {})
        if _form(whole) == _form(node):
            node.replace_all_uses_with(whole)
    graph.eliminate_dead_code()


Plan = Callable[[Insert, dict[int, fx.Node]], Any]
"""Writes a value; the dict holds the masks of positions that are written already."""


@dataclass
class _Join:
    """How nodes of several parts become one of the whole.

    Attributes:
        back: the dimension, counted from the last.
        ends: where parts begin and end in it.
        block: in which they are joined.
        known: plans by parts.
    """

    back: int
    ends: tuple[int, ...]
    block: str | None
    known: dict[tuple[Any, ...], Plan] = field(default_factory=dict)

    def plan(self, parts: tuple[Any, ...]) -> Plan:
        """How to write what the parts are of, before anything is written.

        Raises:
            _UnlikeError: they are not parts of one value.
        """
        if not all(isinstance(x, fx.Node) for x in parts):
            if any(isinstance(x, fx.Node) or x != parts[0] for x in parts):
                raise _UnlikeError
            return lambda *_: parts[0]
        if parts not in self.known:
            self.known[parts] = _once(self._new(parts))
        return self.known[parts]

    def _new(self, parts: tuple[fx.Node, ...]) -> Plan:
        if all(self._is_broadcast(x) for x in parts):
            return self._chosen(parts)
        if any(x.meta.get(BLOCK) != self.block for x in parts):
            raise _UnlikeError
        pieces = [piece for x in parts if (piece := self._piece(x)) is not None]
        if len(pieces) == len(parts):
            source, *_ = pieces[0]
            wanted = [(source, *ends) for ends in pairwise(self.ends)]
            if pieces != wanted or shape(source)[-self.back] != self.ends[-1]:
                raise _UnlikeError
            return lambda *_: source
        first = parts[0]
        alike = all(
            (x.target, len(x.args), x.kwargs) == (first.target, len(first.args), first.kwargs)
            for x in parts
        )
        if not alike or not _is_pointwise(first):
            raise _UnlikeError
        plans = [self.plan(operands) for operands in zip(*(x.args for x in parts), strict=True)]
        return lambda insert, masks: insert(
            first.target, *(plan(insert, masks) for plan in plans), **first.kwargs
        )

    def _is_broadcast(self, node: fx.Node) -> bool:
        """Whether a node is the same at all positions."""
        sizes = shape(node)
        one = all(b - a > 1 for a, b in pairwise(self.ends))
        return len(sizes) < self.back or (sizes[-self.back] == 1 and one)

    def _chosen(self, parts: tuple[fx.Node, ...]) -> Plan:
        """Of values that are the same at all positions of a part: that of a position's part."""
        values = [x.meta["val"] for x in parts]
        alike = len({(v.dtype, v.device, v.ndim) for v in values}) == 1
        if len(set(parts)) > 1 and not (alike and values[0].ndim):  # a scalar has a type of its own
            raise _UnlikeError

        def write(insert: Insert, masks: dict[int, fx.Node]) -> fx.Node:
            chosen = parts[-1]
            for part, end in reversed(list(zip(parts[:-1], self.ends[1:-1], strict=True))):
                if part is not chosen:
                    mask = self._mask(end, insert, masks, values[0].device)
                    chosen = insert(aten.where.self, mask, part, chosen)
            return chosen

        return write

    def _mask(
        self, end: int, insert: Insert, masks: dict[int, fx.Node], device: torch.device
    ) -> fx.Node:
        """Which positions lie before one, [N, 1, ...]."""
        if end not in masks:
            places = insert(aten.arange.default, self.ends[-1], device=device)
            mask = insert(aten.lt.Scalar, places, end)
            for _ in range(self.back - 1):
                mask = insert(aten.unsqueeze.default, mask, -1)
            masks[end] = mask
        return masks[end]

    def _piece(self, node: fx.Node) -> tuple[fx.Node, int, int] | None:
        """Of which value a node is the entries from a position to another, None of none."""
        if node.op != "call_function":
            return None
        rank = len(shape(node))
        if node.target is aten.slice.Tensor:
            source = operand_of(node, 0)
            dim = wrap(argument(node, 1, "dim", 0), rank)
            if argument(node, 4, "step", 1) != 1 or rank - dim != self.back:
                return None
            ends = argument(node, 2, "start"), argument(node, 3, "end")
            return source, *bounds(*ends, shape(source)[dim])
        if node.target is operator.getitem and (cut := split_dim(operand_of(node, 0))) is not None:
            split = operand_of(node, 0)
            if split.target is aten.unbind.int or rank - cut != self.back:
                return None
            start = sum(x.shape[cut] for x in split.meta["val"][: node.args[1]])
            return operand_of(split, 0), start, start + shape(node)[cut]
        return None


def _is_pointwise(node: fx.Node) -> bool:
    """Whether an operator computes every entry from those of its position, and draws nothing."""
    tags = getattr(node.target, "tags", ())
    named = any(isinstance(x, fx.Node) for x in node.kwargs.values())
    if node.op != "call_function" or named or torch.Tag.nondeterministic_seeded in tags:
        return False
    return RULES.get(node.target) is pointwise or torch.Tag.pointwise in tags


def _form(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return value.shape, value.dtype, value.device


def _once(plan: Plan) -> Plan:
    """A plan that writes once, and gives the same node again."""
    written: list[Any] = []

    def write(insert: Insert, masks: dict[int, fx.Node]) -> Any:
        if not written:
            written.append(plan(insert, masks))
        return written[0]

    return write
