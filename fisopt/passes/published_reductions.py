"""The token reductions that AsymRnR has published, by name: thresholds, cells and cache.

The tiers themselves are files of the authors; `published_reduction` puts the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fisopt.checked import choice, path_of
from fisopt.errors import OptionError, ScheduleError, shown
from fisopt.nearest import did_you_mean
from fisopt.passes.schedule import Measured, Schedule, Thresholds, read_tiers
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.partition import Cells

Speed = Literal["base", "fast"]


@dataclass(frozen=True)
class PublishedReduction:
    """One published configuration.

    Attributes:
        grid: frames, rows and columns of the tokens at the published size.
        steps: denoising steps.
        destination_stride: frames, rows and columns of a cell.
        cache_steps: steps for which one match is used.
        thresholds: of the queries and of the values, by speed.
    """

    grid: Cells
    steps: int
    destination_stride: Cells
    cache_steps: int
    thresholds: dict[Speed, tuple[Thresholds, Thresholds]]


PUBLISHED_REDUCTIONS = {
    "cogvideox-2b": PublishedReduction(
        (13, 30, 45),
        50,
        (2, 2, 2),
        5,
        {
            "base": (((6, 0.4), (7, 0.8)), ((8, 0.3),)),
            "fast": (((6, 0.6), (7, 0.8)), ((7, 0.3), (9, 0.4))),
        },
    ),
    "hunyuanvideo": PublishedReduction(
        (33, 34, 60),
        30,
        (6, 2, 2),
        3,
        {
            "base": (((7, 0.9),), ((8, 0.3),)),
            "fast": (((5, 0.3), (7, 0.9)), ((8, 0.3),)),
        },
    ),
    "fasthunyuan": PublishedReduction(
        (17, 45, 80),
        6,
        (6, 2, 2),
        1,
        {
            "base": (((7, 0.9),), ((8, 0.3),)),
            "fast": (((7, 0.9),), ((8, 0.4),)),
        },
    ),
    "mochi-1": PublishedReduction(
        (15, 30, 53),
        30,
        (6, 2, 2),
        3,
        {
            "base": (((10, 0.7),), ((14, 0.3),)),
            "fast": (((9, 0.6), (10, 0.7)), ((14, 0.3),)),
        },
    ),
}


def published_reduction(
    name: str, table: str | Path, speed: Speed = "base", seed: int = 0
) -> TokenReduction:
    """A published configuration with its table of tiers.

    Args:
        name: one of `PUBLISHED_REDUCTIONS`.
        table: the safetensors file of tiers that the authors give for it.
        speed: "base" or "fast".
        seed: of the choice of destinations.

    Raises:
        OptionError: the name or the speed is not known.
        ScheduleError: the table is not complete, foreign, or of another number of steps.
    """
    if not isinstance(name, str) or name not in PUBLISHED_REDUCTIONS:
        raise OptionError(
            f"unknown published reduction {shown(name)}; {did_you_mean(name, PUBLISHED_REDUCTIONS)}"
            f"They are {sorted(PUBLISHED_REDUCTIONS)}"
        )
    choice("published_reduction: speed", speed, get_args(Speed))
    known = PUBLISHED_REDUCTIONS[name]
    tiers = read_tiers(path_of("published_reduction: table", table))
    measured = Measured(f"{name}, {speed}", grid=known.grid)
    schedule = Schedule(tiers["query"], tiers["value"], *known.thresholds[speed], measured)
    if schedule.steps != known.steps:
        raise ScheduleError(
            f"{table}: got tiers for {schedule.steps} steps, {name} is published with "
            f"{known.steps}; give the table of {name}"
        )
    return TokenReduction(
        destination_stride=known.destination_stride,
        cache_steps=known.cache_steps,
        seed=seed,
        schedule=schedule,
    )
