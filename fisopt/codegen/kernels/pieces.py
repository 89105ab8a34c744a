"""Dense attentions that make up a tile-sparse one, and what they cost.

A query whose keys lie in several attentions gets their results merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Range = tuple[int, int]

BLOCK = 128
"""Queries that a processor of the device works on at a time."""
PROCESSORS = 132
"""Blocks that run at a time, as on an H100; they take equally long, so the last ones wait."""
PARTIAL = 256
"""Writing and reading a query's result, in keys that could be attended to meanwhile.

``4 D`` bytes against ``4 D`` FLOPs a key, on a device of 250 FLOPs a byte.
"""
START = 4_000_000
"""Starting an attention, in pairs of all heads: some microseconds."""


@dataclass(frozen=True)
class Piece:
    """One dense attention.

    Attributes:
        queries: ranges that are laid side by side; that of the first window.
        keys: the same of the keys.
        windows: attentions of one size that run as one; more than one have one range each.
        steps: queries and keys from one window to the next.
    """

    queries: tuple[Range, ...]
    keys: tuple[Range, ...]
    windows: int = 1
    steps: tuple[int, int] = (0, 0)

    @property
    def rows(self) -> int:
        """Queries of a window."""
        return length(self.queries)

    def place(self, query: int) -> int:
        """Where in the results of all windows a query is."""
        if self.windows > 1:
            window, row = divmod(query - self.queries[0][0], self.steps[0])
            return window * self.rows + row
        return sum(min(max(query - start, 0), end - start) for start, end in self.queries)

    def sees(self, keys: Range) -> bool:
        """Whether a window of it reads one of some keys."""
        along = (self.windows - 1) * self.steps[1]
        return any(start < keys[1] and keys[0] < end + along for start, end in self.keys)

    def cost(self, heads: int) -> int:
        """Pairs that a device could work on meanwhile, over all heads and batch items."""
        blocks = self.windows * -(-self.rows // BLOCK) * heads
        waves = -(-blocks // PROCESSORS)
        moved = self.windows * self.rows * (PARTIAL if len(self.queries) == 1 else 2 * PARTIAL)
        return waves * PROCESSORS * BLOCK * length(self.keys) + heads * moved + START


@dataclass(frozen=True)
class Segment:
    """Neighbouring queries whose results come from the same attentions.

    Attributes:
        start: the first.
        end: behind the last.
        parts: number of a piece, and the place of the first query in its results; none for
            queries without a key.
    """

    start: int
    end: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Cut:
    """Dense attentions that make up a tile-sparse one.

    Attributes:
        pieces: the attentions.
        segments: all queries in order, and where their results come from.
    """

    pieces: tuple[Piece, ...]
    segments: tuple[Segment, ...]

    def cost(self, heads: int) -> int:
        """See `Piece.cost`; keys that are laid side by side are copied once."""
        copied = {piece.keys for piece in self.pieces if len(piece.keys) > 1}
        gathered = sum(map(length, copied)) * 2 * PARTIAL * heads
        return gathered + sum(piece.cost(heads) for piece in self.pieces)


def length(ranges: Iterable[Range]) -> int:
    """Entries of some ranges."""
    return sum(end - start for start, end in ranges)


def together(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges in order, neighbours joined."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def apart(ranges: Iterable[Range], some: Range) -> list[tuple[Range, ...]]:
    """Ranges, cut into what lies outside and what lies inside of another one; neither is empty."""
    outside: list[Range] = []
    inside: list[Range] = []
    for start, end in ranges:
        first, last = min(max(some[0], start), end), min(max(some[1], start), end)
        outside += [(start, first), (last, end)]
        inside.append((first, last))
    return [kept for part in (outside, inside) if (kept := tuple(r for r in part if r[0] < r[1]))]
