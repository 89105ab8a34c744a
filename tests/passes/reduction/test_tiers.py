"""Tiers and thresholds from profiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fisopt.passes.reduction.features import FEATURES, Feature
from fisopt.passes.reduction.schedule import Schedule
from fisopt.passes.reduction.tiers import hold, ladder, tiers_of

GRID, STRIDE = (8, 8, 8), (2, 2, 2)


def profiles(seed: int = 0, blocks: int = 6, steps: int = 5) -> dict[Feature, Tensor]:
    """What a tenth more loses is more than what the tenth before did, as ranking ensures."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> Tensor:
        more = torch.rand(blocks, steps, 10, generator=generator).sort(-1).values
        scale = torch.rand(blocks, steps, 1, generator=generator)
        return torch.cat([torch.zeros(blocks, steps, 1), (more * scale).cumsum(-1)], -1)

    return {f: one() for f in FEATURES}


def test_tiers_are_tenths_by_rank() -> None:
    profile = profiles()["query"]
    loss = profile[..., 5]
    tiers = torch.tensor(tiers_of(profile))
    for tier in range(10):
        assert int((tiers == tier).sum()) == 3
    assert bool((loss[tiers == 9].max() <= loss[tiers == 8].min()).item())
    assert bool((loss[tiers == 1].max() <= loss[tiers == 0].min()).item())
    alike = torch.ones(2, 3, 11)
    assert len({t for row in tiers_of(alike) for t in row}) == 1, "equal losses are one tier"


def test_equal_losses_leave_tiers_empty_and_the_others_reach_the_end() -> None:
    profile = profiles(blocks=3, steps=2)["query"][:, :1].expand(3, 4, 11)
    assert len({t for row in tiers_of(profile) for t in row}) == 3
    last = ladder(dict.fromkeys(FEATURES, profile), GRID, STRIDE)[-1]
    cap = {last.ratio(f, b, s) for f in FEATURES for b in range(3) for s in range(4)}
    assert len(cap) == 1
    assert cap.pop() >= 0.8


def test_hold() -> None:
    profile = profiles(steps=5)["query"]
    held = hold(profile, 3)
    assert held.shape == profile.shape
    torch.testing.assert_close(held[:, 1], profile[:, :3].mean(1))
    torch.testing.assert_close(held[:, 4], profile[:, 3:].mean(1))


def lost(schedule: Schedule, measured: dict[Feature, Tensor]) -> float:
    total = 0.0
    for feature in FEATURES:
        for b in range(schedule.blocks):
            for s in range(schedule.steps):
                level = round(10 * schedule.ratio(feature, b, s))
                total += float(measured[feature][b, s, level])
    return total / (schedule.blocks * schedule.steps)


@pytest.mark.parametrize("cache_steps", [1, 2])
def test_ladder(cache_steps: int) -> None:
    """Every rung costs less and loses more; shares never fall with the tier; the cap ends it."""
    measured = profiles()
    rungs = ladder(measured, GRID, STRIDE, cache_steps=cache_steps)
    costs = [r.attention_cost(GRID, STRIDE, cache_steps=cache_steps) for r in rungs]
    losses = [lost(r, measured) for r in rungs]
    assert costs[0] == 1
    assert losses[0] == 0
    assert all(a > b for a, b in pairwise(costs))
    assert losses == sorted(losses)
    for rung in rungs:
        for feature in FEATURES:
            shares = [ratio for _, ratio in rung.thresholds(feature)]
            assert shares == sorted(shares)
        for s in range(0, rung.steps, cache_steps):
            for after in range(s, min(s + cache_steps, rung.steps)):
                assert rung.ratios("query", s) == rung.ratios("query", after)
    assert rungs[-1].pairs() == {(0.9, 0.9)}, "the cap, 7/8, is within the last tenth"


def test_ladder_beats_one_share_for_all() -> None:
    """At the cost of a uniform share the chosen one loses less."""
    measured = profiles()
    rungs = ladder(measured, GRID, STRIDE)
    for level in (1, 2, 4):
        uniform = lost_of_one(measured, level)
        cost = ((512 - int(51.2 * level)) / 512) ** 2
        rung = next(r for r in rungs if r.attention_cost(GRID, STRIDE) <= cost)
        assert lost(rung, measured) < uniform


def lost_of_one(measured: dict[Feature, Tensor], level: int) -> float:
    return sum(float(measured[f][..., level].mean()) for f in FEATURES)


def test_weights() -> None:
    """A feature that matters a thousand times more is touched last."""
    measured = profiles()
    rungs = ladder({**measured, "query": 1000 * measured["query"]}, GRID, STRIDE)
    first = next(i for i, r in enumerate(rungs) if r.query_thresholds)
    assert rungs[first - 1].pairs() <= {(0, r / 10) for r in range(6, 10)}
