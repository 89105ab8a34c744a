"""Open sizes: one graph for many token grids, found by comparing graphs of a few.

A Program is static: its sizes are numbers.  Flattened on two grids that differ in one size, a
variant whose graphs agree in every operator differs in numbers only.  Each such number is fitted
as a polynomial of frames, height and width, linear in each; the fit is exact at a grid that was
not used for it, or the sizes stay fixed.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.artefact.graph import placeholders, results_of
from fisopt.artefact.manifest import SIZES
from fisopt.artefact.sizes import (
    Roles,
    grown,
    product_text,
    resized,
    roles_of,
)
from fisopt.artefact.variants import Exports
from fisopt.errors import FisoptError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.inputs import Inputs
from fisopt.rewrite.program import BOUNDARIES, Program

CHECK = {"frames": 2, "height": 3, "width": 2}
"""How much larger the sizes of the grid are on which a fit is checked."""
Polynomial = dict[tuple[str, ...], int]
"""Products of sizes -> their factors; the empty product is the constant."""
Flatten = Callable[[Program], fx.GraphModule]


@dataclass(frozen=True)
class Opened:
    """The variants of an export with their sizes open.

    Attributes:
        modules: the flat graph of each.
        dynamic: for each, dynamic shapes as torch.export takes them; None if all are fixed.
        shapes: sizes of the call's tensors and results by name, expressions where they are open.
        fixed: the sizes that are fixed, each with the reason.
    """

    modules: tuple[fx.GraphModule, ...]
    dynamic: Mapping[str, Any] | None
    shapes: Mapping[str, tuple[int | str, ...]]
    fixed: Mapping[str, str]


class _UnfitError(Exception):
    """Graphs of two grids differ in more than numbers."""


def open_sizes(
    exports: Exports,
    at: Callable[[Inputs, int], Program],
    flatten: Flatten,
    wanted: Sequence[str] = SIZES,
    otherwise: str = "not asked for",
) -> Opened:
    """Flatten variants, with as many sizes open as their graphs allow.

    Args:
        exports: what to flatten.
        at: the Program of a variant for inputs of other sizes.
        flatten: makes a flat graph.
        wanted: the sizes to try; the rest are fixed.
        otherwise: why those are.
    """
    program = exports.all[0].program
    count, grid, roles = len(exports.all), program.layout, roles_of(program)
    fixed = {name: otherwise for name in SIZES if name not in wanted}
    if not wanted:
        return Opened(tuple(flatten(v.program) for v in exports.all), None, {}, fixed)
    base = [flatten(at(program.inputs, i)) for i in range(count)]
    told = {
        names[0] for places in roles.values() for _, names in places.values() if len(names) == 1
    }

    def graphs(steps: Mapping[str, int]) -> list[fx.GraphModule]:
        other = grown(grid, steps)
        inputs = resized(program.inputs, roles, other)
        if program.source.grid_of(inputs.kwargs()) != (other.frames, other.height, other.width):
            raise _UnfitError("the model is told its sizes as numbers")
        made = [flatten(at(inputs, i)) for i in range(count)]
        for one, two in zip(base, made, strict=True):
            _compare(one, two)
        return made

    points: dict[frozenset[str], list[fx.GraphModule]] = {frozenset(): base}
    for name in (n for n in SIZES if n not in fixed):
        if name not in told:
            fixed[name] = "no dimension of the inputs tells it"
        elif grid.frames <= BOUNDARIES:
            fixed[name] = f"with {grid.frames} latent frames no axis is known"
        else:
            try:
                points[frozenset([name])] = graphs({name: 1})
            except (_UnfitError, FisoptError) as error:
                fixed[name] = str(error).splitlines()[0]
    names = tuple(n for n in SIZES if n not in fixed)
    if not names:
        return Opened(tuple(base), None, {}, fixed)
    try:
        for subset in (frozenset(c) for k in (2, 3) for c in itertools.combinations(names, k)):
            points[subset] = graphs(dict.fromkeys(subset, 1))
        check = graphs({name: CHECK[name] for name in names})
        shapes = _result_shapes(points, check, names, program)
        for i, module in enumerate(base):
            numbers = {subset: _numbers(made[i]) for subset, made in points.items()}
            fits = _fits(numbers, _numbers(check[i]), names, grid)
            _write(module, fits, names, roles, program)
    except (_UnfitError, FisoptError) as error:
        reason = str(error).splitlines()[0]
        base = [flatten(v.program) for v in exports.all]
        return Opened(tuple(base), None, {}, fixed | dict.fromkeys(names, reason))
    shapes |= _shapes(program, roles, names)
    return Opened(tuple(base), _dynamic(program, roles, names), shapes, fixed)


def _compare(one: fx.GraphModule, two: fx.GraphModule) -> None:
    """Insist that two graphs differ in whole numbers only."""
    if len(one.graph.nodes) != len(two.graph.nodes):
        raise _UnfitError("the graph has another number of operators at another size")
    place = {n: i for module in (one, two) for i, n in enumerate(module.graph.nodes)}
    for a, b in zip(one.graph.nodes, two.graph.nodes, strict=True):
        if a.op != b.op or (a.op == "call_function" and a.target != b.target):
            raise _UnfitError(
                f"the graph has {b.target} in the place of {a.target} at another size"
            )
        if a.op == "get_attr":
            x, y = (operator.attrgetter(str(n.target))(m) for m, n in ((one, a), (two, b)))
            if x is not y and (x.shape != y.shape or not torch.equal(x, y)):
                raise _UnfitError(f"the constant {a.target} depends on it")
        mine, theirs = (list(_leaves((n.args, n.kwargs))) for n in (a, b))
        same = len(mine) == len(theirs) and all(
            _alike(x, y, place) for x, y in zip(mine, theirs, strict=True)
        )
        if not same:
            raise _UnfitError(f"{a.target} has other arguments at another size")


def _alike(x: Any, y: Any, place: Mapping[fx.Node, int]) -> bool:
    if isinstance(x, fx.Node) and isinstance(y, fx.Node):
        return place[x] == place[y]
    return (_is_number(x) and _is_number(y)) or (type(x) is type(y) and x == y)


def _is_number(x: Any) -> bool:
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


def _numbers(module: fx.GraphModule) -> list[int]:
    """Every whole number among a graph's arguments, in order."""
    return [
        leaf
        for node in module.graph.nodes
        for leaf in _leaves((node.args, node.kwargs))
        if _is_number(leaf)
    ]


def _fits(
    points: Mapping[frozenset[str], Sequence[int]],
    check: Sequence[int],
    names: Sequence[str],
    grid: TokenLayout,
) -> list[Polynomial | None]:
    """Each number as a polynomial of the open sizes; None where it is always the same.

    Raises:
        _UnfitError: a fit misses the grid that it is checked on.
    """
    here = {name: getattr(grid, name) for name in names}
    there = {name: here[name] + CHECK[name] for name in names}
    result: list[Polynomial | None] = []
    for i, seen in enumerate(check):
        values = {subset: numbers[i] for subset, numbers in points.items()}
        if len({*values.values(), seen}) == 1:
            result.append(None)
            continue
        fit = _fit(values, here)
        if value_at(fit, there) != seen:
            raise _UnfitError(
                f"a number of the graph ({values[frozenset()]}) is no product of sizes"
            )
        result.append(fit)
    return result


def _fit(values: Mapping[frozenset[str], int], here: Mapping[str, int]) -> Polynomial:
    """The polynomial through values at the corners of a unit cube of sizes that starts here."""
    result: Polynomial = {}
    for corner in values:
        factor = sum(
            (-1) ** (len(corner) - len(below)) * value
            for below, value in values.items()
            if below <= corner
        )
        for kept in _subsets(sorted(corner, key=SIZES.index)):  # expand the product of (x - here)
            rest = math.prod(-here[name] for name in corner if name not in kept)
            result[kept] = result.get(kept, 0) + factor * rest
    return {names: factor for names, factor in result.items() if factor}


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for k in range(len(names) + 1):
        yield from itertools.combinations(names, k)


def value_at(fit: Polynomial, sizes: Mapping[str, int]) -> int:
    """The value of a polynomial."""
    return sum(math.prod((sizes[n] for n in names), start=f) for names, f in fit.items())


def _write(
    module: fx.GraphModule,
    fits: Sequence[Polynomial | None],
    names: Sequence[str],
    roles: Roles,
    program: Program,
) -> None:
    """Write polynomials of the inputs' sizes in the place of numbers."""
    graph = module.graph
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    made: dict[tuple[tuple[tuple[str, ...], int], ...], fx.Node] = {}
    order = iter(fits)
    with graph.inserting_before(first):
        sizes = _size_nodes(graph, holders, names, roles, program)

        def replaced(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)([replaced(item) for item in value])
            if isinstance(value, dict):
                return {key: replaced(item) for key, item in value.items()}
            if not _is_number(value) or (fit := next(order)) is None:
                return value
            key = tuple(fit.items())
            if key not in made:
                made[key] = _polynomial(graph, fit, sizes)
            return made[key]

        for node in list(graph.nodes):
            if node.op in ("placeholder", "get_attr") or node.meta.get(_SIZE):
                continue
            args, kwargs = replaced(tuple(node.args)), replaced(dict(node.kwargs))
            node.args, node.kwargs = args, kwargs
    graph.lint()
    module.recompile()


_SIZE = "fisopt.size"


def _size_nodes(
    graph: fx.Graph,
    holders: Sequence[fx.Node],
    names: Sequence[str],
    roles: Roles,
    program: Program,
) -> dict[str, fx.Node]:
    """A node for each open size, read from the first input that tells it."""
    tensors = [i for i, _ in program.inputs.tensors()]
    found: dict[str, fx.Node] = {}
    for leaf, places in roles.items():
        for dim, (factor, of) in places.items():
            if len(of) != 1 or of[0] not in names or of[0] in found:
                continue
            holder = holders[tensors.index(leaf)]
            node = graph.call_function(torch.ops.aten.sym_size.int, (holder, dim))
            node.meta[_SIZE] = True
            if factor != 1:
                node = graph.call_function(operator.floordiv, (node, factor))
                node.meta[_SIZE] = True
            found[of[0]] = node
    return found


def _polynomial(graph: fx.Graph, fit: Polynomial, sizes: Mapping[str, fx.Node]) -> fx.Node:
    total: Any = None
    for names, factor in fit.items():
        term: Any = factor
        for name in names:
            term = sizes[name] if term == 1 else _called(graph, operator.mul, sizes[name], term)
        total = term if total is None else _called(graph, operator.add, total, term)
    assert isinstance(total, fx.Node)
    return total


def _called(graph: fx.Graph, target: Callable[..., Any], a: Any, b: Any) -> fx.Node:
    node = graph.call_function(target, (a, b))
    node.meta[_SIZE] = True
    return node


def _dynamic(program: Program, roles: Roles, names: Sequence[str]) -> dict[str, Any]:
    """Dynamic shapes for torch.export: every open dimension, by input name; ranges are inferred."""
    result: dict[str, Any] = {
        holder.name: {
            dim: torch.export.Dim.AUTO
            for dim, (_, of) in roles.get(leaf, {}).items()
            if set(of) & set(names)
        }
        or None
        for holder, leaf in _inputs(program)
    }
    return result


def _shapes(
    program: Program, roles: Roles, names: Sequence[str]
) -> dict[str, tuple[int | str, ...]]:
    """Sizes of the inputs by name, with the names of those that are open."""
    grid = program.layout
    result: dict[str, tuple[int | str, ...]] = {}
    for holder, leaf in _inputs(program):
        shape: list[int | str] = [int(s) for s in holder.meta["val"].shape]
        for dim, (factor, of) in roles.get(leaf, {}).items():
            free = tuple(n for n in of if n in names)
            bound = math.prod((getattr(grid, n) for n in of if n not in names), start=factor)
            if free:
                shape[dim] = product_text((bound, free))
        result[holder.name] = tuple(shape)
    return result


def _result_shapes(
    points: Mapping[frozenset[str], Sequence[fx.GraphModule]],
    check: Sequence[fx.GraphModule],
    names: Sequence[str],
    program: Program,
) -> dict[str, tuple[int | str, ...]]:
    """Sizes of the results by name, as sums of products of the open sizes.

    Raises:
        _UnfitError: a size is no such sum.
    """

    def sizes(module: fx.GraphModule) -> dict[str, tuple[int, ...]]:
        held = results_of(program, module.graph)
        return {name: tuple(map(int, node.meta["val"].shape)) for name, node in held.items()}

    def numbers(modules: Sequence[fx.GraphModule]) -> list[int]:
        return list(itertools.chain(*sizes(modules[0]).values()))

    at = {subset: numbers(made) for subset, made in points.items()}
    fits = iter(_fits(at, numbers(check), names, program.layout))
    return {
        name: tuple(size if (fit := next(fits)) is None else _fit_text(fit) for size in shape)
        for name, shape in sizes(points[frozenset()][0]).items()
    }


def _fit_text(fit: Polynomial) -> str:
    return " + ".join(product_text((factor, names)) for names, factor in fit.items())


def _inputs(program: Program) -> Iterator[tuple[fx.Node, int]]:
    """The tensors of the call with the leaves that they are; state comes after them."""
    leaves = [i for i, _ in program.inputs.tensors()]
    return zip(placeholders(program)[: len(leaves)], leaves, strict=True)
