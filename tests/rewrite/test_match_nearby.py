"""Matching nearby: against loops over every pair, and what it shares with matching everywhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fisopt.rewrite.ops import match_nearby, match_tokens
from fisopt.rewrite.partition import destinations_in_cells

MATCH = torch.ops.fisopt.match_nearby.default
EVERYWHERE = torch.ops.fisopt.match_tokens.default
Grid = tuple[int, int, int]


def cell_of(token: int, grid: Grid, stride: Grid, corner: list[int]) -> list[int]:
    """Frame, row and column of the cell of a token; the rim belongs to the nearest."""
    place = []
    for size, step, start in reversed([*zip(grid, stride, corner, strict=True)]):
        token, here = divmod(token, size)
        place.append(min(max((here - start) // step, 0), size // step - 1))
    return place[::-1]


def pairs(
    x: Tensor, grid: Grid, stride: Grid, chosen: list[int], corner: list[int]
) -> dict[int, dict[int, float]]:
    """For every source the squared distances to the destinations that it may have, by loops."""
    cells = {i: cell_of(i, grid, stride, corner) for i in range(math.prod(grid))}
    found = {}
    for source in set(cells) - set(chosen):
        near = [
            d
            for d in chosen
            if max(abs(a - b) for a, b in zip(cells[source], cells[d], strict=True)) <= 1
        ]
        found[source] = {d: float((x[source] - x[d]).square().sum()) for d in near}
    return found


sides = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))


def side(step: int, cells: int, rim: int) -> tuple[int, int]:
    return step * cells + min(rim, step - 1), step


@given(sides=st.tuples(sides, sides, sides), seed=st.integers(0, 9), data=st.data())
def test_match(sides: Any, seed: int, data: Any) -> None:
    """Grids with and without a rim, text on both sides, every number of sources that stay."""
    grid, stride = zip(*(side(*each) for each in sides), strict=True)
    chosen, corner = destinations_in_cells(grid, stride, seed)
    tokens, count = math.prod(grid), len(chosen)
    keep = data.draw(st.integers(0, tokens - count))
    before, after = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    x = torch.randn(2, before + tokens + after, 3, dtype=torch.float64)
    kept, origin, lost = MATCH(x, chosen, corner, grid, stride, keep, before, after)
    for row in range(2):
        video = x[row, before : before + tokens]
        distances = pairs(video, grid, stride, chosen.tolist(), corner.tolist())
        ranked = sorted(distances, key=lambda s: -min(distances[s].values()))
        entries = [*range(before)]
        entries += [before + i for i in (*chosen.tolist(), *sorted(ranked[:keep]))]
        entries += range(before + tokens, before + tokens + after)
        assert kept[row].tolist() == entries
        stands = {i: i for i in range(before + tokens + after)}
        gone = 0.0
        for source in ranked[keep:]:
            nearest = min(distances[source], key=distances[source].__getitem__)
            stands[before + source] = before + nearest
            gone += distances[source][nearest]
        assert {i: entries[int(j)] for i, j in enumerate(origin[row])} == stands
        assert float(lost[row]) == pytest.approx(gone / float(video.square().sum()), abs=1e-6)


def made(grid: Grid = (5, 4, 7), stride: Grid = (2, 2, 3)) -> tuple[Any, ...]:
    """Operands, text behind."""
    chosen, corner = destinations_in_cells(grid, stride, 0)
    x = torch.randn(2, 3, math.prod(grid) + 2, 8)
    return x, chosen, corner, grid, stride, 20, 0, 2


def test_where_all_cells_are_neighbours_it_is_matching_everywhere() -> None:
    x, chosen, _, grid, stride, *rest = made((5, 4, 5), (2, 2, 3))
    corner = destinations_in_cells(grid, stride, 0)[1]
    near = MATCH(x, chosen, corner, grid, stride, *rest, True)
    for got, want in zip(near, EVERYWHERE(x, chosen, *rest, True), strict=True):
        torch.testing.assert_close(got, want)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    args = made()
    whole = MATCH(*args)
    for budget in (1, 9000, 40000):
        monkeypatch.setitem(match_nearby._BUDGET, "cpu", budget)
        for got, want in zip(MATCH(*args), whole, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("profile", [True, False])
def test_what_is_lost_shows_what_is_not_finite(bad: float, profile: bool) -> None:
    x, *rest = made()
    for place in ((0, 1, 3, 2), (0, 0, int(rest[0][1]), 0)):
        spoilt = x.clone()
        spoilt[place] = bad
        kept, origin, lost = MATCH(spoilt, *rest, profile)
        assert not lost.isfinite().all()
        assert int(kept.min()) >= 0
        assert int(origin.max()) < kept.shape[-1]


def test_half_types_are_compared_in_single() -> None:
    x, *rest = made()
    half = x.bfloat16()
    for got, want in zip(MATCH(half, *rest), MATCH(half.float(), *rest), strict=True):
        torch.testing.assert_close(got, want)


def test_registration() -> None:
    x, *rest = made()
    torch.library.opcheck(MATCH, (x, *rest))
    permuted = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(MATCH, (permuted, *rest, True))


def test_flops_are_those_of_the_products() -> None:
    """Wan2.2-A14B at 720p: 270 times fewer than everywhere."""
    grid, stride = (21, 45, 80), (2, 2, 2)
    chosen, corner = destinations_in_cells(grid, stride, 0)
    x = torch.empty(1, 40, math.prod(grid), 128, device="meta")
    near = match_nearby.match_nearby.flops
    everywhere = match_tokens.match_tokens.flops
    assert near is not None
    assert everywhere is not None
    got = near(x, chosen, corner, grid, stride, 0, 0, 0)
    assert got == 2 * 40 * (11 * 23 * 40 * 8) * 27 * 128
    assert 250 < everywhere(x, chosen, 0, 0, 0) / got < 300
