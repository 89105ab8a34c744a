"""What the published token reductions leave of a visual attention: from tables, and from graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fisopt
from fisopt import PUBLISHED_REDUCTIONS, TokenReduction, models
from fisopt.passes.reduction.features import FEATURES
from fisopt.passes.reduction.published_reductions import Speed
from fisopt.passes.reduction.schedule import Schedule
from fisopt.rewrite.cost import graph_cost
from fisopt.rewrite.program import Program


@dataclass(frozen=True)
class Video:
    """The model and the video of a published configuration.

    Attributes:
        model: name among the published models.
        height: rows of pixels.
        width: columns of pixels.
        frames: frames of the clip.
    """

    model: str
    height: int
    width: int
    frames: int


VIDEOS = {
    "cogvideox-2b": Video("cogvideox-2b", 480, 720, 49),
    "hunyuanvideo": Video("hunyuanvideo", 544, 960, 129),
    "fasthunyuan": Video("hunyuanvideo", 720, 1280, 65),
    "mochi-1": Video("mochi-1", 480, 848, 85),
}


def schedule_of(name: str, speed: Speed, tables: Path) -> Schedule:
    """The published schedule with the authors' table."""
    schedule = fisopt.published_reduction(name, speed, tables=tables).schedule
    assert isinstance(schedule, Schedule)
    return schedule


def from_table(name: str, schedule: Schedule) -> dict[str, Any]:
    """Shares of the blocks and steps that drop something, mean dropped shares, and the cost.

    The cost is the mean over blocks and steps of a visual attention, as a share of the dense one,
    text and matching not counted.
    """
    known = PUBLISHED_REDUCTIONS[name]
    row: dict[str, Any] = {}
    for feature in FEATURES:
        ratios = [r for step in range(schedule.steps) for r in schedule.ratios(feature, step)]
        row[f"{feature}_cells"] = round(sum(r > 0 for r in ratios) / len(ratios), 4)
        row[f"{feature}_mean"] = round(sum(ratios) / len(ratios), 4)
    cost = schedule.attention_cost(
        known.grid, known.destination_stride, cache_steps=known.cache_steps
    )
    return {**row, "cost": round(cost, 4)}


class Graphs:
    """A published model on the meta device at its published size, dense and reduced."""

    def __init__(self, name: str) -> None:
        video, self.known = VIDEOS[name], PUBLISHED_REDUCTIONS[name]
        size = {"height": video.height, "width": video.width, "num_frames": video.frames}
        model = models.build(video.model)
        self.dense = fisopt.capture(model, models.example_inputs(video.model, **size))
        layout = self.dense.layout
        assert (layout.frames, layout.height, layout.width) == self.known.grid, layout
        assert len(self.dense.blocks) == self.known.blocks
        self.flops = {(0.0, 0.0): _flops(self.dense)}

    def cost(self, schedule: Schedule) -> float:
        """Mean FLOPs of self-attention under a schedule over dense ones, joined text included."""
        known, total = self.known, 0.0
        for step in range(schedule.steps):
            first = step - step % known.cache_steps
            pairs = zip(*(schedule.ratios(f, first) for f in FEATURES), strict=True)
            total += sum(self._of(pair)[block] for block, pair in enumerate(pairs))
        return total / (schedule.steps * sum(self.flops[0.0, 0.0]))

    def _of(self, pair: tuple[float, float]) -> list[float]:
        """FLOPs of each block's self-attention where every block drops a pair of shares."""
        pair = (float(pair[0]), float(pair[1]))
        if pair not in self.flops:
            reduction = TokenReduction(*pair, destination_stride=self.known.destination_stride)
            self.flops[pair] = _flops(reduction(self.dense).program)
        return self.flops[pair]


def _flops(program: Program) -> list[float]:
    return [graph_cost(b.body.graph).flops["self-attention"] for b in program.blocks]


def neighbours(features: torch.Tensor, destinations: torch.Tensor) -> float:
    """Share of the tokens whose nearest destination bfloat16 arithmetic finds too.

    The distances are those of the authors' code: one product of the features, twice extended by
    norms and ones, in the features' own dtype.

    Shapes: features [rows, tokens, width] in float32; destinations [count].
    """

    def nearest(x: torch.Tensor) -> torch.Tensor:
        y = x[:, destinations]
        norms, wide = x.square().sum(-1, True), y.square().sum(-1, True)
        left = torch.cat([x.mul(-2), norms, torch.ones_like(norms)], -1)
        right = torch.cat([y, torch.ones_like(wide), wide], -1)
        return (left @ right.mT).argmin(-1)

    others = torch.ones(features.shape[1], dtype=torch.bool)
    others[destinations] = False
    short = features.bfloat16()
    same = nearest(short)[:, others] == nearest(short.double())[:, others]
    return float(same.double().mean())
