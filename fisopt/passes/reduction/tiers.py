"""From what matching measured to a schedule: tiers of redundancy, and thresholds on them.

A loss says for a block and a step how much the model's output suffers if the most similar j tenths
of the tokens are dropped there.  The tier is the rank among all: the tenth that loses most if half
of its tokens are dropped is tier 0, the tenth that loses least is tier 9.  Thresholds are found by
raising, again and again, the share of the one tier whose next tenth of tokens saves most attention
for what it loses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisopt.passes.reduction.features import FEATURES, Feature, Thresholds, Tiers
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.schedule import Schedule
from fisopt.rewrite.ops.match_tokens import LEVELS
from fisopt.rewrite.partition import Cells, destination_count, sources_to_keep

COUNT = 10
"""Tiers."""


def hold(loss: Tensor, cache_steps: int) -> Tensor:
    """Average over the steps that share a match.  Shapes: [blocks, steps, 11] both."""
    parts = [p.mean(1, keepdim=True).expand_as(p) for p in torch.split(loss, cache_steps, 1)]
    return torch.cat(parts, dim=1)


def tiers_of(loss: Tensor) -> Tiers:
    """Rank the blocks and steps by what dropping half of the tokens loses.

    Shapes: loss [blocks, steps, 11].
    """
    half = loss[..., LEVELS // 2].flatten().contiguous()
    below = torch.searchsorted(half.sort().values, half)
    tiers = COUNT - 1 - below * COUNT // len(half)
    return tuple(tuple(row) for row in tiers.reshape(loss.shape[:2]).tolist())


def ladder(
    losses: Mapping[Feature, Tensor],
    grid: Cells,
    stride: Cells,
    *,
    cache_steps: int = 1,
    measured: Measured | None = None,
) -> list[Schedule]:
    """Schedules that drop more and more, each rung one tenth of the tokens of one tier more.

    Args:
        losses: for each feature [blocks, steps, 11].
        grid: frames, rows and columns of the tokens.
        stride: the cells that hold one destination each.
        cache_steps: steps for which one match is used.
        measured: what the losses were measured on.
    """
    held = {f: hold(losses[f], cache_steps) for f in FEATURES}
    tiers = {f: tiers_of(held[f]) for f in FEATURES}
    table = {f: torch.tensor(tiers[f]) for f in FEATURES}
    present = {f: sorted(set(table[f].flatten().tolist())) for f in FEATURES}
    cells = table["query"].numel()
    lost = {
        f: torch.stack([(held[f] * (table[f] == t)[..., None]).sum((0, 1)) for t in range(COUNT)])
        / cells
        for f in FEATURES
    }
    left = _left(grid, stride)
    top = int((left.diff() < 0).sum())
    level = {f: torch.zeros(COUNT, dtype=torch.int64) for f in FEATURES}

    def schedule() -> Schedule:
        limits = {f: _thresholds(level[f]) for f in FEATURES}
        given = (tiers["query"], tiers["value"], limits["query"], limits["value"])
        return Schedule(*given, measured or Measured())

    rungs = [schedule()]
    while True:
        kept = {f: left[level[f][table[f]]] for f in FEATURES}
        best: tuple[float, Feature, int] | None = None
        for feature in FEATURES:
            other = kept["value" if feature == "query" else "query"]
            for tier, above in zip(present[feature], (*present[feature][1:], None), strict=True):
                now = int(level[feature][tier])
                follows = above is None or now < int(level[feature][above])
                members = table[feature] == tier
                if now >= top or not follows:
                    continue
                saved = float(((left[now] - left[now + 1]) * other[members]).sum()) / cells
                loses = float(lost[feature][tier, now + 1] - lost[feature][tier, now])
                if best is None or saved / (loses + 1e-12) > best[0]:
                    best = (saved / (loses + 1e-12), feature, tier)
        if best is None:
            return rungs
        level[best[1]][best[2]] += 1
        rungs.append(schedule())


def _left(grid: Cells, stride: Cells) -> Tensor:
    """Share of the tokens that is left at each tenth dropped, up to the cap."""
    tokens, count = grid[0] * grid[1] * grid[2], destination_count(grid, stride)
    kept = [count + sources_to_keep(tokens, count, j / LEVELS) for j in range(LEVELS)]
    return torch.tensor(kept, dtype=torch.float64) / tokens


def _thresholds(level: Tensor) -> Thresholds:
    """Where the share rises from one tier to the next."""
    rises, last = [], 0
    for tier, j in enumerate(level.tolist()):
        if j > last:
            rises.append((tier, j / LEVELS))
            last = j
    return tuple(rises)
