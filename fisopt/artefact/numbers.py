"""The numbers among the arguments of flat graphs, and whether two graphs differ in them alone."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx


class UnfitError(Exception):
    """Graphs of two grids differ in more than numbers."""


def compare(one: fx.GraphModule, two: fx.GraphModule) -> None:
    """Insist that two graphs differ in whole numbers only."""
    if len(one.graph.nodes) != len(two.graph.nodes):
        raise UnfitError("the graph has another number of operators at another size")
    place = {n: i for module in (one, two) for i, n in enumerate(module.graph.nodes)}
    for a, b in zip(one.graph.nodes, two.graph.nodes, strict=True):
        if a.op != b.op or (a.op == "call_function" and a.target != b.target):
            raise UnfitError(f"the graph has {b.target} instead of {a.target} at another size")
        if a.op == "get_attr":
            x, y = (operator.attrgetter(str(n.target))(m) for m, n in ((one, a), (two, b)))
            if x is not y and (x.shape != y.shape or not torch.equal(x, y)):
                raise UnfitError(f"the constant {a.target} depends on it")
        mine, theirs = (list(_leaves((n.args, n.kwargs))) for n in (a, b))
        same = len(mine) == len(theirs) and all(
            _alike(x, y, place) for x, y in zip(mine, theirs, strict=True)
        )
        if not same:
            raise UnfitError(f"{a.target} has other arguments at another size")


def _alike(x: Any, y: Any, place: Mapping[fx.Node, int]) -> bool:
    if isinstance(x, fx.Node) and isinstance(y, fx.Node):
        return place[x] == place[y]
    return (is_number(x) and is_number(y)) or (type(x) is type(y) and x == y)


def is_number(x: Any) -> bool:
    """Whether an argument is a whole number, which True and False are not."""
    return isinstance(x, int) and not isinstance(x, bool)


def _leaves(value: Any) -> Iterator[Any]:
    """What a nest of arguments holds, in order, with the lengths of its lists."""
    if isinstance(value, (tuple, list)):
        yield f"{len(value)} items"
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    else:
        yield value


def numbers_of(module: fx.GraphModule) -> list[int]:
    """Every whole number among a graph's arguments, in order."""
    return [
        leaf
        for node in module.graph.nodes
        for leaf in _leaves((node.args, node.kwargs))
        if is_number(leaf)
    ]
