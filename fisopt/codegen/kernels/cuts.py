"""Cuts of a tile-sparse attention into a few dense ones: the cheapest, found by counting.

Groups of queries that read the same keys share one attention.  What is left of the plan is cut into
key columns that all other groups see, and into what each sees beside: of the latter, equal tiles
at equal distances are the windows of one attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fisopt.codegen.kernels.pieces import Cut, Piece, Range, Segment, together

Served = tuple[Piece, tuple[int, ...]]
"""An attention and the bands that want its results."""


@dataclass(frozen=True)
class Band:
    """Neighbouring queries that read the same keys."""

    start: int
    end: int
    keys: frozenset[int]
    """Numbers of the columns."""


def cheapest(rows: Sequence[int], keys: Sequence[Sequence[Sequence[int]]], heads: int) -> Cut:
    """The cut of a plan that costs least.

    Args:
        rows: where the groups start, and the end of the last; see `TilePlan`.
        keys: the key ranges of each group, empty ones among them.
        heads: how many heads of how many batch items there are.
    """
    return min(cuts(rows, keys, heads), key=lambda cut: cut.cost(heads))


def cuts(rows: Sequence[int], keys: Sequence[Sequence[Sequence[int]]], heads: int) -> list[Cut]:
    """Every cut that is considered; they are equal in what they compute."""
    columns, bands = _bands(rows, keys)
    alike = _alike(bands)
    whole = frozenset[int]().union(*alike)
    grouped = [_dense(bands, members, columns) for seen, members in alike.items() if seen]
    made = [_joined(bands, grouped)]
    direct = {seen for seen, members in alike.items() if len(members) > 1 or seen == whole}
    rest = [n for n, band in enumerate(bands) if band.keys and band.keys not in direct]
    if rest:
        first = [_dense(bands, alike[seen], columns) for seen in direct if seen]
        shared = frozenset[int].intersection(*(bands[n].keys for n in rest))
        for apart in dict.fromkeys((shared, frozenset())):
            seen_by_all = _shared(bands, rest, columns, apart, heads) if apart else []
            tiles = _tiles(bands, rest, columns, apart, heads)
            made.append(_joined(bands, [*first, *seen_by_all, *tiles]))
    return made


def _bands(
    rows: Sequence[int], keys: Sequence[Sequence[Sequence[int]]]
) -> tuple[list[Range], list[Band]]:
    """Key columns that no range cuts through, and the groups, neighbours that are alike as one."""
    edges = sorted({edge for ranges in keys for r in ranges if r[0] < r[1] for edge in r})
    columns = list(pairwise(edges))
    number = {edge: n for n, edge in enumerate(edges)}
    bands: list[Band] = []
    for (start, end), ranges in zip(pairwise(rows), keys, strict=True):
        spans = (range(number[a], number[b]) for a, b in ranges if a < b)
        seen = frozenset(n for span in spans for n in span)
        if bands and bands[-1].keys == seen:
            start = bands.pop().start
        if start < end:
            bands.append(Band(start, end, seen))
    return columns, bands


def _alike(bands: Sequence[Band]) -> dict[frozenset[int], tuple[int, ...]]:
    """The bands that read the same keys, by these."""
    found: dict[frozenset[int], tuple[int, ...]] = {}
    for n, band in enumerate(bands):
        found[band.keys] = (*found.get(band.keys, ()), n)
    return found


def _ranges(columns: Sequence[Range], numbers: Iterable[int]) -> tuple[Range, ...]:
    """Columns as ranges, neighbours joined."""
    return together(columns[n] for n in sorted(numbers))


def _dense(bands: Sequence[Band], members: tuple[int, ...], columns: Sequence[Range]) -> Served:
    """One attention of bands that read the same keys, over all of these."""
    queries = together((bands[n].start, bands[n].end) for n in members)
    return Piece(queries, _ranges(columns, bands[members[0]].keys)), members


def _shared(
    bands: Sequence[Band],
    members: Sequence[int],
    columns: Sequence[Range],
    shared: frozenset[int],
    heads: int,
) -> list[Served]:
    """Attentions of some bands over the keys that all of them see.

    One a run of neighbours, or one of all whose queries are laid side by side, or one that computes
    what lies between as well.
    """
    keys = _ranges(columns, shared)
    runs = together((bands[n].start, bands[n].end) for n in members)
    each = [Piece((run,), keys) for run in runs]
    ways = [each, [Piece(runs, keys)], [Piece(((runs[0][0], runs[-1][1]),), keys)]]
    best = min(ways, key=lambda way: sum(piece.cost(heads) for piece in way))
    return [
        (piece, tuple(n for n in members if _within(bands[n], piece.queries))) for piece in best
    ]


def _within(band: Band, queries: Iterable[Range]) -> bool:
    return any(start <= band.start < end for start, end in queries)


@dataclass(frozen=True)
class _Tile:
    """What a band sees of one range of keys."""

    band: int
    query: int
    key: int


def _tiles(
    bands: Sequence[Band],
    members: Sequence[int],
    columns: Sequence[Range],
    shared: frozenset[int],
    heads: int,
) -> list[Served]:
    """Attentions of some bands over what each sees beside the shared keys."""
    found: dict[tuple[int, int, int], list[_Tile]] = {}
    starts = {start: n for n, (start, _) in enumerate(columns)}
    for n in members:
        band = bands[n]
        for start, end in _ranges(columns, band.keys - shared):
            form = (band.end - band.start, end - start, starts[start] - n)
            found.setdefault(form, []).append(_Tile(n, band.start, start))
    made = []
    for (rows, width, _), tiles in found.items():
        made += _windows(tiles, rows, width, heads)
    return made


def _windows(tiles: list[_Tile], rows: int, width: int, heads: int) -> list[Served]:
    """Tiles of one size as windows: each run of equal steps by itself, or all and those between."""
    if len(tiles) == 1:
        return [_windowed(tiles, rows, width, (0, 0))]
    steps = min((b.query - a.query, b.key - a.key) for a, b in pairwise(tiles))
    runs = [[tiles[0]]]
    for a, b in pairwise(tiles):
        if (b.query - a.query, b.key - a.key) == steps:
            runs[-1].append(b)
        else:
            runs.append([b])
    split = [_windowed(run, rows, width, steps) for run in runs]
    first = tiles[0]
    if any(
        (t.query - first.query) * steps[1] != (t.key - first.key) * steps[0]
        or (t.query - first.query) % steps[0]
        for t in tiles
    ):
        return split
    whole = _windowed(tiles, rows, width, steps)
    cheaper = whole[0].cost(heads) < sum(piece.cost(heads) for piece, _ in split)
    return [whole] if cheaper else split


def _windowed(tiles: list[_Tile], rows: int, width: int, steps: Range) -> Served:
    first, last = tiles[0], tiles[-1]
    count = 1 + (last.query - first.query) // steps[0] if last is not first else 1
    queries = ((first.query, first.query + rows),)
    keys = ((first.key, first.key + width),)
    piece = Piece(queries, keys, count, steps if count > 1 else (0, 0))
    return piece, tuple(tile.band for tile in tiles)


def _joined(bands: Sequence[Band], served: Sequence[Served]) -> Cut:
    """Where the results of all queries come from."""
    parts: list[list[tuple[int, int]]] = [[] for _ in bands]
    for number, (piece, members) in enumerate(served):
        for n in members:
            parts[n].append((number, piece.place(bands[n].start)))
    segments: list[Segment] = []
    for band, mine in zip(bands, parts, strict=True):
        segment = Segment(band.start, band.end, tuple(mine))
        if segments and _goes_on(segments[-1], segment):
            before = segments.pop()
            segment = Segment(before.start, band.end, before.parts)
        segments.append(segment)
    return Cut(tuple(piece for piece, _ in served), tuple(segments))


def _goes_on(a: Segment, b: Segment) -> bool:
    """Whether a segment's results lie behind those of the segment before it."""
    rows = b.start - a.start
    return b.parts == tuple((number, place + rows) for number, place in a.parts)
