"""Index expressions: where an element of an operand is read, as a function of the program's tile.

An index is an affine sum over atoms: tile coordinates, their quotients and remainders, and
entries of an index tensor.  Sizes are constants, so that every atom has bounds and most
quotients and remainders of a reshape fold away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Axis = Literal["row", "column", "reduced"]


@dataclass(frozen=True)
class Var:
    """A coordinate of the tile: 0 <= name < size."""

    name: str
    size: int
    axis: Axis


@dataclass(frozen=True)
class Div:
    """``of // by``, rounded down."""

    of: Index
    by: int


@dataclass(frozen=True)
class Mod:
    """``of % by``, never negative."""

    of: Index
    by: int


@dataclass(frozen=True)
class Lookup:
    """An entry of an index tensor, in [0, size)."""

    load: Any
    size: int
    axes: frozenset[Axis]


Atom: TypeAlias = Var | Div | Mod | Lookup


@dataclass(frozen=True)
class Index:
    """``sum(factor * atom) + const``."""

    terms: tuple[tuple[Atom, int], ...] = ()
    const: int = 0

    @property
    def axes(self) -> frozenset[Axis]:
        """The axes of the tile along which it differs."""
        return frozenset(axis for atom, _ in self.terms for axis in _axes(atom))

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.const + other)
        return _sum([*self.terms, *other.terms], self.const + other.const)

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return Index()
        return Index(tuple((a, f * factor) for a, f in self.terms), self.const * factor)


@dataclass(frozen=True)
class Range:
    """A condition: ``low <= index < high``."""

    index: Index
    low: int
    high: int


@dataclass(frozen=True)
class Every:
    """A condition: ``index % step == phase``."""

    index: Index
    step: int
    phase: int


Guard: TypeAlias = Range | Every
Guards: TypeAlias = tuple[Guard, ...]


def variable(var: Var) -> Index:
    """A coordinate as an index; one that has a single value is that value."""
    return Index(((var, 1),)) if var.size > 1 else Index()


def constant(value: int) -> Index:
    """An index that is the same everywhere."""
    return Index((), value)


def lookup(load: Any, size: int, axes: frozenset[Axis]) -> Index:
    """What an index tensor holds, in [0, size)."""
    return Index(((Lookup(load, size, axes), 1),))


def bounds(index: Index, guards: Guards = ()) -> tuple[int, int]:
    """The least and the greatest value where the guards hold."""
    low = high = index.const
    for atom, factor in index.terms:
        ends = [factor * end for end in _atom_bounds(atom, guards)]
        low, high = low + min(ends), high + max(ends)
    for guard in guards:
        if isinstance(guard, Range) and guard.index.terms == index.terms:
            shift = index.const - guard.index.const
            low, high = max(low, guard.low + shift), min(high, guard.high - 1 + shift)
    return low, high


def floor_div(index: Index, by: int, guards: Guards = ()) -> Index:
    """``index // by``, simplified."""
    whole = Index(tuple((a, f // by) for a, f in index.terms if f % by == 0))
    rest = Index(tuple((a, f) for a, f in index.terms if f % by), index.const % by)
    whole += index.const // by
    low, high = bounds(rest, guards)
    first = low // by
    if first == high // by:
        return whole + first
    for factor, coarse, _ in _split(rest, by, guards):
        return whole + floor_div(coarse, by // factor, guards)
    (atom, one), *more = rest.terms
    if not more and one == 1 and rest.const == 0:
        if isinstance(atom, Div):
            return whole + floor_div(atom.of, atom.by * by, guards)
        if isinstance(atom, Mod) and atom.by % by == 0:
            return whole + modulo(floor_div(atom.of, by, guards), atom.by // by, guards)
    return whole + Index(((Div(rest, by), 1),))


def modulo(index: Index, by: int, guards: Guards = ()) -> Index:
    """``index % by``, simplified."""
    rest = Index(tuple((a, f) for a, f in index.terms if f % by), index.const % by)
    low, high = bounds(rest, guards)
    if low // by == high // by:
        return rest + -(low // by) * by
    for factor, coarse, fine in _split(rest, by, guards):
        return modulo(coarse, by // factor, guards) * factor + fine
    (atom, one), *more = rest.terms
    if not more and one == 1 and rest.const == 0 and isinstance(atom, Mod) and atom.by % by == 0:
        return modulo(atom.of, by, guards)
    return Index(((Mod(rest, by), 1),))


def flatten(coords: Iterable[Index], sizes: Iterable[int]) -> Index:
    """The row-major position of a coordinate."""
    flat = Index()
    for coord, size in zip(coords, sizes, strict=True):
        flat = flat * size + coord
    return flat


def unflatten(flat: Index, sizes: tuple[int, ...], guards: Guards = ()) -> tuple[Index, ...]:
    """The coordinate at a row-major position."""
    coords: list[Index] = []
    stride = 1
    for d in reversed(range(len(sizes))):
        coord = floor_div(flat, stride, guards) if stride > 1 else flat
        outermost = all(size == 1 for size in sizes[:d])
        coords.append(coord if outermost else modulo(coord, sizes[d], guards))
        stride *= sizes[d]
    return tuple(
        Index() if size == 1 else coord for coord, size in zip(reversed(coords), sizes, strict=True)
    )


def atoms(index: Index) -> Iterator[Atom]:
    """Every atom of an index, those inside of others included."""
    for atom, _ in index.terms:
        yield atom
        if isinstance(atom, (Div, Mod)):
            yield from atoms(atom.of)


def _axes(atom: Atom) -> frozenset[Axis]:
    if isinstance(atom, Var):
        return frozenset([atom.axis])
    return atom.axes if isinstance(atom, Lookup) else atom.of.axes


def _atom_bounds(atom: Atom, guards: Guards) -> tuple[int, int]:
    if isinstance(atom, (Var, Lookup)):
        low, high = 0, atom.size - 1
        for guard in guards:
            if isinstance(guard, Range) and guard.index.terms == ((atom, 1),):
                low = max(low, guard.low - guard.index.const)
                high = min(high, guard.high - 1 - guard.index.const)
        return low, high
    low, high = bounds(atom.of, guards)
    if isinstance(atom, Div):
        return low // atom.by, high // atom.by
    if low // atom.by == high // atom.by:
        return low % atom.by, high % atom.by
    return 0, atom.by - 1


def _split(index: Index, by: int, guards: Guards) -> Iterator[tuple[int, Index, Index]]:
    """Write an index as ``factor * coarse + fine``, factor dividing ``by``, 0 <= fine < factor."""
    for factor in sorted({math.gcd(f, by) for _, f in index.terms} - {1}, reverse=True):
        fine = Index(tuple((a, f) for a, f in index.terms if f % factor), index.const % factor)
        low, high = bounds(fine, guards)
        if low >= 0 and high < factor:
            coarse = tuple((a, f // factor) for a, f in index.terms if f % factor == 0)
            yield factor, Index(coarse, index.const // factor), fine


def _sum(terms: list[tuple[Atom, int]], const: int) -> Index:
    """Collect equal atoms; a quotient and the remainder that belongs to it are the dividend."""
    factors: dict[Atom, int] = {}
    for atom, factor in terms:
        factors[atom] = factors.get(atom, 0) + factor
    for atom, factor in list(factors.items()):
        if not isinstance(atom, Mod) or atom not in factors:
            continue
        partner = floor_div(atom.of, atom.by)
        if len(partner.terms) != 1 or partner.const or partner.terms[0][1] != 1:
            continue
        quotient = partner.terms[0][0]
        if factors.get(quotient) == factor * atom.by:
            del factors[atom], factors[quotient]
            whole = atom.of * factor
            return _sum([*factors.items(), *whole.terms], const + whole.const)
    kept = ((atom, factor) for atom, factor in factors.items() if factor)
    return Index(tuple(sorted(kept, key=_order)), const)


def _order(term: tuple[Atom, int]) -> tuple[int, str]:
    atom, factor = term
    return -factor, atom.name if isinstance(atom, Var) else ""
