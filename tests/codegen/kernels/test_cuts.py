"""Cuts of plans into dense attentions, in numbers alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisopt.codegen.kernels.cuts import cheapest, cuts
from fisopt.codegen.kernels.pieces import Cut, Piece, Segment
from fisopt.passes.tiling.masks import FrameMask, RadialDecay, SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.tile_plan import tile_plan

Groups = list[list[list[int]]]


def plan(mask: FrameMask, axis: FrameAxis) -> tuple[list[int], Groups]:
    made = tile_plan(mask.table(axis.frames), axis, axis)
    return made.rows.tolist(), made.keys[0].tolist()


def pairs(cut: Cut) -> Counter[tuple[int, int]]:
    """How often a query's results are over a key, from the definition of a piece."""
    found: Counter[tuple[int, int]] = Counter()
    for segment in cut.segments:
        for number, place in segment.parts:
            piece = cut.pieces[number]
            for row in range(segment.end - segment.start):
                window, _ = divmod(place + row, piece.rows)
                queries = [q for a, b in piece.queries for q in range(a, b)]
                query = queries[(place + row) % piece.rows] + window * piece.steps[0]
                assert query == segment.start + row
                for a, b in piece.keys:
                    found.update((query, k + window * piece.steps[1]) for k in range(a, b))
    return found


ranges = st.lists(st.integers(0, 9), max_size=4, unique=True).map(sorted)
groups = st.lists(st.tuples(st.integers(0, 3), ranges), min_size=1, max_size=6)


@given(groups=groups, heads=st.sampled_from([1, 40]))
def test_every_kept_pair_is_in_one_part(groups: list[tuple[int, list[int]]], heads: int) -> None:
    """Groups of any sizes, none among them, with any ranges, none among them."""
    rows, keys, want = [0], [], Counter[tuple[int, int]]()
    for size, edges in groups:
        pairs_of = list(zip(edges[::2], edges[1::2], strict=False))
        keys.append([list(r) for r in pairs_of] + [[0, 0]])
        rows.append(rows[-1] + size)
        want.update((q, k) for q in range(*rows[-2:]) for a, b in pairs_of for k in range(a, b))
    for cut in cuts(rows, keys, heads):
        assert pairs(cut) == want
        ends = [0, *(segment.end for segment in cut.segments)]
        assert [segment.start for segment in cut.segments] == ends[:-1]
        assert ends[-1] == rows[-1]


def test_global_frames_and_runs_of_local_ones() -> None:
    """Two calls a run, one for all global frames and the text, whose keys they share."""
    axis = FrameAxis(21, inner=3600, after=512)
    cut = cheapest(*plan(TileMask(2), axis), heads=40)
    frame = [3600 * i for i in range(22)]
    whole = ((frame[0], frame[1]), (frame[11], frame[12]), (frame[21], frame[21] + 512))
    assert cut.pieces == (
        Piece(whole, ((0, axis.size),)),
        Piece(((frame[1], frame[11]),), whole),
        Piece(((frame[12], frame[21]),), whole),
        Piece(((frame[1], frame[2]),), ((frame[1], frame[2]),), 10, (3600, 3600)),
        Piece(((frame[12], frame[13]),), ((frame[12], frame[13]),), 9, (3600, 3600)),
    )
    assert cut.segments == (
        Segment(frame[0], frame[1], ((0, 0),)),
        Segment(frame[1], frame[11], ((1, 0), (3, 0))),
        Segment(frame[11], frame[12], ((0, 3600),)),
        Segment(frame[12], frame[21], ((2, 0), (4, 0))),
        Segment(frame[21], axis.size, ((0, 7200),)),
    )


def test_where_calls_cost_more_than_rows_runs_are_bridged() -> None:
    cut = cheapest(*plan(TileMask(4), FrameAxis(21, inner=16)), heads=1)
    assert [(piece.rows // 16, piece.windows) for piece in cut.pieces] == [(4, 1), (20, 1), (1, 20)]


def test_windows_of_keys_overlap_and_nothing_is_merged() -> None:
    cut = cheapest(*plan(SlidingWindow(2), FrameAxis(21, inner=3600)), heads=40)
    (inner,) = [piece for piece in cut.pieces if piece.windows > 1]
    assert inner == Piece(((7200, 10800),), ((0, 18000),), 17, (3600, 3600))
    assert len(cut.pieces) == 5
    assert all(len(segment.parts) == 1 for segment in cut.segments)


def test_far_frames_are_windows_too() -> None:
    cut = cuts(*plan(RadialDecay(2), FrameAxis(21, inner=3600)), heads=40)[1]
    far = {p.windows for p in cut.pieces if p.keys[0][0] - p.queries[0][0] == 8 * 3600}
    assert far == {13}


def test_a_dense_plan_is_one_piece() -> None:
    cut = cheapest(*plan(TileMask(9), FrameAxis(9, inner=5, before=2)), heads=2)
    assert cut.pieces == (Piece(((0, 47),), ((0, 47),)),)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("axis", "heads", "most"), [
    (FrameAxis(21, inner=3600), 40, 1.08),
    (FrameAxis(31, inner=3600, after=512), 16, 1.09),
    (FrameAxis(31, inner=880), 24, 1.43),
])  # fmt: skip
def test_published_sizes_cost_little_more_than_their_pairs(
    axis: FrameAxis, heads: int, most: float, k: int
) -> None:
    made = tile_plan(TileMask(k).table(axis.frames), axis, axis)
    cut = cheapest(made.rows.tolist(), made.keys[0].tolist(), heads)
    assert 1 <= cut.cost(heads) / (heads * made.pairs) < most
