"""The benchmark of what published schedules leave of a visual attention, on a small part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.published_costs import VIDEOS, from_table, neighbours, schedule_of
from fisopt import PUBLISHED_REDUCTIONS, Schedule
from fisopt.rewrite.partition import destinations
from tests.asymrnr import authors_data, needs_authors_data

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "matching.json"
COSTS = {
    ("cogvideox-2b", "base"): (0.267, 0.176, 0.300, 0.090, 0.764),
    ("cogvideox-2b", "fast"): (0.267, 0.195, 0.410, 0.139, 0.712),
    ("hunyuanvideo", "base"): (0.138, 0.124, 0.392, 0.117, 0.764),
    ("hunyuanvideo", "fast"): (0.305, 0.174, 0.392, 0.117, 0.717),
    ("fasthunyuan", "base"): (0.133, 0.120, 0.411, 0.123, 0.761),
    ("fasthunyuan", "fast"): (0.133, 0.120, 0.411, 0.164, 0.722),
    ("mochi-1", "base"): (0.233, 0.163, 0.115, 0.034, 0.814),
    ("mochi-1", "fast"): (0.277, 0.190, 0.115, 0.034, 0.787),
}
"""Shares of cells and mean shares of queries and of values, and the mean cost of an attention."""


def in_order(row: dict[str, Any]) -> list[float]:
    names = ("query_cells", "query_mean", "value_cells", "value_mean", "cost")
    return [row[name] for name in names]


def test_from_a_table_by_hand() -> None:
    """Two blocks, two windows of three steps: 17 of 20 cells of queries keep all tokens."""
    tiers = ((9, 9, 9, 0, 0, 0), (0, 0, 0, 8, 8, 8))
    schedule = Schedule(tiers, tiers[::-1], ((9, 0.9),), ((8, 0.3),))
    row = from_table("hunyuanvideo", schedule)
    tokens = 33 * 34 * 60
    queries, values = tokens // 10 - 1, tokens * 7 // 10  # 6731.99..., as doubles have it
    assert row["query_cells"] == 0.25
    assert row["query_mean"] == 0.225
    assert row["value_cells"] == 0.5
    assert row["value_mean"] == 0.15
    first = queries * tokens + tokens * values
    second = tokens * values + tokens * tokens
    assert row["cost"] == pytest.approx((first + second) / (4 * tokens**2), abs=5e-5)


@needs_authors_data
@pytest.mark.parametrize(("name", "speed"), COSTS)
def test_published_costs(name: str, speed: Any) -> None:
    row = from_table(name, schedule_of(name, speed, authors_data()))
    assert in_order(row) == pytest.approx(COSTS[name, speed], abs=6e-4)


@pytest.mark.parametrize(("name", "speed"), COSTS)
def test_the_result_file_says_the_same(name: str, speed: str) -> None:
    row = json.loads(RESULT.read_text())["published_cost"][f"{name}, {speed}"]
    assert in_order(row) == pytest.approx(COSTS[name, speed], abs=6e-4)


@pytest.mark.parametrize("name", VIDEOS)
def test_published_videos_have_the_published_grids(name: str) -> None:
    """Latent frames of 4 or 6, and 16 pixels a token; CogVideoX-2B and HunyuanVideo alike."""
    video, grid = VIDEOS[name], PUBLISHED_REDUCTIONS[name].grid
    step = 6 if name == "mochi-1" else 4
    frames = (video.frames - 1) // step + 1
    assert (frames, video.height // 16, video.width // 16) == grid


def test_neighbours_in_bfloat16() -> None:
    """Far apart, rounding changes nothing; nearly alike, it does."""
    generator = torch.Generator().manual_seed(0)
    chosen = destinations((4, 4, 4), (2, 2, 2), 0)
    apart = torch.randn(2, 64, 16, generator=generator)
    assert neighbours(apart, chosen) > 0.9
    alike = torch.ones(2, 64, 16) + 0.05 * torch.randn(2, 64, 16, generator=generator)
    assert neighbours(alike, chosen) < 0.9
