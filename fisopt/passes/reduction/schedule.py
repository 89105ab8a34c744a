"""Schedules of token reduction: redundancy tiers by block and step, and thresholds on them.

A schedule is a YAML file: for each feature, ``q`` for the queries and ``v`` for keys and values, an
integer table [blocks, steps], in which a higher tier is more redundant, and the thresholds::

    q: {6: 0.4, 7: 0.8}
    v: {8: 0.3}
    tiers:
      q:
      - [0, 3, 6, 7]
      v:
      - [0, 2, 8, 8]
    measured: {model: WanTransformer3DModel, grid: [16, 8, 8], prompts: 4, seed: 0}

The schedules that the authors of AsymRnR have published are two files and load as they are: a
safetensors file holds the tables ``q`` and ``v``, and where the file of thresholds does not name it
(``table: FILE``), `table_beside` finds it by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fisopt.checked import Checked
from fisopt.errors import ScheduleError, shown
from fisopt.passes.reduction.features import (
    FEATURES,
    FORM,
    Feature,
    Thresholds,
    Tiers,
    are_rows,
    are_tiers,
)
from fisopt.passes.reduction.measured import UNTOLD, Measured
from fisopt.passes.reduction.schedule_file import read_schedule, write_schedule
from fisopt.rewrite.partition import Cells, destination_count, sources_to_keep
from fisopt.rewrite.pass_base import Step

_TABLES = ("query", "value", "query_thresholds", "value_thresholds")


@dataclass(frozen=True)
class Schedule(metaclass=Checked):
    """The share of tokens to drop, by feature, block and step.

    Attributes:
        query: tiers of the queries.
        value: tiers of the keys and values.
        query_thresholds: dropped shares of the queries by tier.
        value_thresholds: dropped shares of the keys and values by tier.
        measured: what the tiers were measured on.
    """

    query: Tiers
    value: Tiers
    query_thresholds: Thresholds
    value_thresholds: Thresholds
    measured: Measured = UNTOLD

    def __post_init__(self) -> None:
        if not isinstance(self.measured, Measured):
            raise ScheduleError(f"measured: got {shown(self.measured)}, wanted a Measured")
        _check_form(self)
        shapes = {f: _shape_of(getattr(self, f)) for f in FEATURES}
        if shapes["query"] != shapes["value"] or 0 in shapes["query"]:
            raise ScheduleError(
                f"{self}: got tables of {shapes['query']} and {shapes['value']} [blocks, steps], "
                "wanted two of one shape that are not empty"
            )
        for feature in FEATURES:
            for tier, ratio in self.thresholds(feature):
                if type(tier) is not int or not isinstance(ratio, (int, float)):
                    raise ScheduleError(f"{self}: got {tier!r}: {ratio!r} for {feature}; {FORM}")
                if not 0 <= ratio < 1:
                    raise ScheduleError(
                        f"{self}: the {feature} share at tier {tier} must be in [0, 1), got {ratio}"
                    )

    def __str__(self) -> str:
        return f"schedule {self.measured}"

    def __repr__(self) -> str:
        """Brief: passes print their options, and tables of tiers are long."""
        return f"<{self}: {self.blocks} blocks x {self.steps} steps>"

    @property
    def blocks(self) -> int:
        """Number of video blocks with tiers."""
        return len(self.query)

    @property
    def steps(self) -> int:
        """Number of steps with tiers."""
        return len(self.query[0])

    def thresholds(self, feature: Feature) -> Thresholds:
        """Thresholds of one feature."""
        return self.query_thresholds if feature == "query" else self.value_thresholds

    def ratio(self, feature: Feature, block: int, step: int) -> float:
        """Dropped share: the largest over the thresholds that the tier satisfies, else 0."""
        tiers = self.query if feature == "query" else self.value
        tier = tiers[block][step]
        return max((ratio for least, ratio in self.thresholds(feature) if tier >= least), default=0)

    def ratios(self, feature: Feature, step: int) -> tuple[float, ...]:
        """Dropped shares of all blocks at a step of the table."""
        return tuple(self.ratio(feature, block, step) for block in range(self.blocks))

    def column(self, step: Step) -> int:
        """The step of the table that corresponds to a step of a run.

        A run of fewer steps reads the table at the same relative positions between noise and video.

        Raises:
            ScheduleError: the run has more steps than the table, or its number of steps is unknown.
        """
        if (count := step.count) is None:
            raise ScheduleError(
                f"{self} needs the number of steps of the run; a pipeline or scheduler gives it, "
                "in a loop of your own write `with optimized.generation(num_steps):`"
            )
        if count > self.steps or step.index >= count:
            raise ScheduleError(
                f"{self} has tiers for {self.steps} steps, the run needs "
                f"{max(count, step.index + 1)}; run at most {self.steps}, or calibrate with more"
            )
        if count in (1, self.steps):
            return step.index
        return round(step.index * (self.steps - 1) / (count - 1))

    def pairs(self, cache_steps: int = 1) -> set[tuple[float, float]]:
        """The distinct pairs of query and value shares: each is one shape of attention."""
        return {
            (self.ratio("query", b, s), self.ratio("value", b, s))
            for b in range(self.blocks)
            for s in range(0, self.steps, cache_steps)
        }

    def attention_cost(
        self, grid: Cells, stride: Cells, *, cache_steps: int = 1, text: int = 0
    ) -> float:
        """Mean cost of a visual attention, without matching, as a share of the dense one.

        Args:
            grid: frames, rows and columns of the tokens.
            stride: size of the cells, each with one destination.
            cache_steps: number of steps that reuse one match and its shares.
            text: number of text tokens joined to the sequence.
        """
        tokens, count = grid[0] * grid[1] * grid[2], destination_count(grid, stride)

        def left(ratio: float) -> int:
            kept = count + sources_to_keep(tokens, count, ratio) if ratio else tokens
            return min(kept, tokens) + text

        total = sum(
            left(self.ratio("query", b, s - s % cache_steps))
            * left(self.ratio("value", b, s - s % cache_steps))
            for b in range(self.blocks)
            for s in range(self.steps)
        )
        return total / (self.blocks * self.steps * (tokens + text) ** 2)

    def plain(self) -> dict[str, Any]:
        """The schedule as plain values."""
        tables = {name: [list(row) for row in getattr(self, name)] for name in _TABLES}
        return {**tables, "measured": self.measured.plain()}

    @staticmethod
    def from_plain(said: Mapping[str, Any]) -> Schedule:
        """The inverse of `plain`."""
        tables: Any = {name: tuple(tuple(row) for row in said[name]) for name in _TABLES}
        return Schedule(**tables, measured=Measured.from_plain(said["measured"]))

    @staticmethod
    def load(path: str | Path, table: str | Path | None = None) -> Schedule:
        """Read a schedule.

        Args:
            path: the YAML file.
            table: the safetensors file of tiers, if the YAML file does not hold them; by default
                the file that the YAML file names, or the one next to it that `table_beside` finds.

        Raises:
            ScheduleError: a file is incomplete, or is not a schedule.
            FileError: a file cannot be read.
        """
        return Schedule(*read_schedule(path, table))

    def save(self, path: str | Path, extra: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the schedule as one YAML file; replace an existing file.

        Args:
            path: the YAML file.
            extra: tensors for your information, such as measurements: `save` writes them to a
                safetensors file next to it, which `load` does not need.

        Raises:
            ScheduleError: the schedule is larger than `load` accepts.
            FileError: the file cannot be written; an existing file stays unchanged.
        """
        tiers = {f: getattr(self, f) for f in FEATURES}
        limits = {f: self.thresholds(f) for f in FEATURES}
        write_schedule(path, tiers, limits, self.measured, extra)


def _check_form(schedule: Schedule) -> None:
    for feature in FEATURES:
        tiers: object = getattr(schedule, feature)
        limits: object = schedule.thresholds(feature)
        if not are_tiers(tiers):
            raise ScheduleError(
                f"{schedule}: got {feature}={shown(tiers)}, wanted ints [blocks][steps]"
            )
        if not are_rows(limits) or any(len(pair) != 2 for pair in limits):
            raise ScheduleError(
                f"{schedule}: got {feature}_thresholds={shown(limits)}, wanted (tier, ratio) pairs"
            )


def _shape_of(tiers: Tiers) -> tuple[int, ...]:
    return (len(tiers), *sorted({len(row) for row in tiers}))
