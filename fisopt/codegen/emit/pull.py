"""From a region's graph to expressions: results are pulled, element by element, from operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx

from fisopt.codegen.emit.arguments import piece, shape, value
from fisopt.codegen.emit.expression import Expr, Expressions, Load, RefusalError, Sum, kind_of, walk
from fisopt.codegen.emit.expression import axes as expression_axes
from fisopt.codegen.emit.index import (
    Every,
    Guard,
    Guards,
    Index,
    Range,
    Var,
    atoms,
    bounds,
    flatten,
    floor_div,
    lookup,
    modulo,
    unflatten,
    variable,
)
from fisopt.codegen.emit.operators import PIECES, RULES
from fisopt.codegen.emit.rules import Coords
from fisopt.rewrite.analysis.structure import results

MOST_COLUMNS = 16384
"""Elements of a row that a program holds in registers at most."""


@dataclass(frozen=True)
class Tile:
    """How the elements of a result are laid out over rows and columns of a program.

    Attributes:
        sizes: of the result.
        columns: the dimensions that a row spans, in order; the others count rows.
    """

    sizes: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def row_dims(self) -> tuple[int, ...]:
        """The dimensions that count rows, in order."""
        return tuple(d for d in range(len(self.sizes)) if d not in self.columns)

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return math.prod(self.sizes[d] for d in self.row_dims)

    @property
    def column_count(self) -> int:
        """How many elements a row has."""
        return math.prod(self.sizes[d] for d in self.columns)

    @property
    def row_vars(self) -> dict[int, Var]:
        """The coordinate of each row dimension."""
        return {d: Var(f"i{d}", self.sizes[d], "row") for d in self.row_dims}

    @property
    def column(self) -> Var:
        """The position in a row."""
        return Var("c", self.column_count, "column")

    def coords(self) -> Coords:
        """The coordinate of an element of the result."""
        spread = unflatten(variable(self.column), tuple(self.sizes[d] for d in self.columns))
        by_dim = dict(zip(self.columns, spread, strict=True))
        by_dim.update((d, variable(var)) for d, var in self.row_vars.items())
        return tuple(by_dim[d] for d in range(len(self.sizes)))


class UnfitError(RefusalError):
    """A tile cannot hold what a region computes."""


@dataclass
class Puller:
    """Computes elements of a graph's nodes; the `Reader` that the operators' rules use."""

    tile: Tile
    operands: Mapping[fx.Node, int]
    make: Expressions = field(default_factory=Expressions)
    _guards: Guards = ()
    _phases: tuple[Every, ...] = ()
    _known: dict[tuple[fx.Node, Coords, Guards, tuple[Every, ...]], Expr] = field(
        default_factory=dict
    )

    def at(self, node: fx.Node, coords: Coords) -> Expr:
        """An element of a node's value."""
        key = (node, coords, self._guards, self._phases)
        if key not in self._known:
            self._known[key] = self._element(node, coords)
        return self._known[key]

    def _element(self, node: fx.Node, coords: Coords) -> Expr:
        if node in self.operands:
            kind = kind_of(value(node).dtype, node.name)
            return self.make.load(self.operands[node], coords, self._guards, kind)
        if (found := piece(node)) is not None and found[0].target in PIECES:
            return PIECES[found[0].target](self, *found, coords)
        if node.target not in RULES:
            raise RefusalError(f"{node.target} is not known to the emitter")
        return RULES[node.target](self, node, coords)

    def where(self, guard: Guard, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        """One of two elements; each is read only where its side of a range holds."""
        if not isinstance(guard, Range):
            return self._alternate(guard, yes, no)
        known = self._decided(guard)
        if known is not None:
            return yes() if known else no()
        with self._under(guard):
            first = yes()
        with self._under(*self._beside(guard)):
            second = no()
        return self.make.select(guard, first, second)

    def _alternate(self, guard: Every, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        """One of two elements by the remainder of a coordinate; both may be read everywhere."""
        step, phase = guard.step, guard.phase
        here = Every(modulo(guard.index, step, self._guards), step, phase)
        for known in self._phases:
            if (known.index, known.step) == (here.index, step):
                return yes() if known.phase == phase else no()
        before = self._phases
        self._phases = (*before, here)
        first = yes()
        self._phases = (*before, Every(here.index, 2, 1 - phase)) if step == 2 else before
        second = no()
        self._phases = before
        return self.make.select(here, first, second)

    def _decided(self, guard: Range) -> bool | None:
        low, high = bounds(guard.index, self._guards)
        if guard.low <= low and high < guard.high:
            return True
        return False if high < guard.low or low >= guard.high else None

    def _beside(self, guard: Range) -> Guards:
        """What holds where a range does not, if that is a range, too."""
        low, high = bounds(guard.index, self._guards)
        if guard.low <= low:
            return (Range(guard.index, guard.high, high + 1),)
        if guard.high > high:
            return (Range(guard.index, low, guard.low),)
        return ()

    @contextmanager
    def _under(self, *guards: Guard) -> Iterator[None]:
        before = self._guards
        self._guards = (*before, *(g for g in guards if g not in before))
        try:
            yield
        finally:
            self._guards = before

    def look_up(self, node: fx.Node, coords: Coords, size: int) -> Index:
        """An entry of an index tensor as an index, in [0, size)."""
        load = self.at(node, coords)
        if not isinstance(load, Load) or load.kind != "int":
            raise RefusalError(f"{node.name}: indices that are computed in the region")
        return lookup(load, size, expression_axes(load))

    def row_sum(self, coords: Coords, size: int, body: Callable[[Index], Expr]) -> Expr:
        """The sum of a body over ``size`` elements of the row at ``coords``."""
        if any(index.axes - {"row"} for index in coords):
            raise UnfitError("a row norm of which a program holds no whole row")
        if size > MOST_COLUMNS:
            raise RefusalError(f"a row norm over {size} elements; {MOST_COLUMNS} fit in registers")
        whole = size == self.tile.column_count
        var = self.tile.column if whole else Var(f"j{size}", size, "reduced")
        before = self._guards
        self._guards = tuple(g for g in before if not g.index.axes - {"row"})
        try:
            total = self.make.sum(body(variable(var)), var)
        finally:
            self._guards = before
        return total

    def divide(self, index: Index, by: int) -> tuple[Index, Index]:
        """Quotient and remainder."""
        return floor_div(index, by, self._guards), modulo(index, by, self._guards)

    def reshape(self, coords: Coords, sizes: Sequence[int], to: tuple[int, ...]) -> Coords:
        """A coordinate under other sizes."""
        return unflatten(flatten(coords, sizes), to, self._guards)


@dataclass(frozen=True)
class Pulled:
    """A region as expressions of one tile, one for each result."""

    tile: Tile
    exprs: tuple[Expr, ...]

    @property
    def sums(self) -> list[Sum]:
        """The sums over rows in it."""
        return [expr for expr in walk(*self.exprs) if isinstance(expr, Sum)]

    @property
    def elements_read(self) -> int:
        """Elements that all programs load together, each load of a program counted once."""
        counts = {"row": self.tile.row_count, "column": self.tile.column_count}
        total = 0
        for expr in walk(*self.exprs):
            if isinstance(expr, Load):
                over = {axis for index in expr.index for axis in index.axes}
                wide = [v.size for index in expr.index for v in reduced(index)]
                total += math.prod(counts[a] for a in over if a in counts) * max(wide, default=1)
        return total


def reduced(index: Index) -> Iterator[Var]:
    """The coordinates of inner rows that an index depends on."""
    for atom in atoms(index):
        if isinstance(atom, Var) and atom.axis == "reduced":
            yield atom


def pull(graph: fx.Graph) -> Pulled:
    """Express the results of a region, all of one shape, over the tile that reads least.

    Raises:
        RefusalError: an operator, a dtype or a form that cannot be emitted.
    """
    outputs = results(graph)
    sizes = shape(outputs[0])
    operands = {n: i for i, n in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    found: list[Pulled] = []
    why: RefusalError | None = None
    for columns in _candidates(sizes):
        tile = Tile(sizes, columns)
        puller = Puller(tile, operands)
        try:
            exprs = tuple(puller.at(node, tile.coords()) for node in outputs)
        except UnfitError as error:
            why = error
            continue
        found.append(Pulled(tile, exprs))
        if not found[-1].sums:
            break
    if not found:
        raise why or RefusalError(f"a result of shape {list(sizes)} has no row")
    return min(found, key=lambda p: (p.elements_read, len(p.tile.columns)))


def _candidates(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Sets of dimensions that a row may span: the last one, with one or two before it."""
    last = len(sizes) - 1
    if last < 0:
        return
    yield (last,)
    for d in reversed(range(last)):
        if sizes[d] > 1 and math.prod((sizes[d], sizes[last])) <= MOST_COLUMNS:
            yield (d, last)
