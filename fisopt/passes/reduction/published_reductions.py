"""The token reductions that AsymRnR has published, by name: thresholds, cells and cache.

The tiers themselves are files of the authors; `published_reduction` puts the two together.  A
table has a row for each block and a column for each step and says nothing of the tokens, so it is
used at any size of the video, as the authors' code does; at another than the published one the
report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from fisopt.checked import checked, choice, path_of
from fisopt.errors import OptionError, ScheduleError, shown
from fisopt.nearest import did_you_mean
from fisopt.passes.reduction.features import Thresholds
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.schedule import Schedule
from fisopt.passes.reduction.schedule_file import read_tiers
from fisopt.passes.reduction.tier_files import AUTHORS, table_in
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.partition import Cells

Speed = Literal["base", "fast"]


@dataclass(frozen=True)
class PublishedReduction:
    """One published configuration.

    Attributes:
        table: name of the authors' file of tiers.
        blocks: video blocks of the model.
        grid: frames, rows and columns of the tokens at the published size.
        steps: denoising steps.
        destination_stride: frames, rows and columns of a cell.
        cache_steps: steps for which one match is used.
        thresholds: of the queries and of the values, by speed.
    """

    table: str
    blocks: int
    grid: Cells
    steps: int
    destination_stride: Cells
    cache_steps: int
    thresholds: dict[Speed, tuple[Thresholds, Thresholds]]


PUBLISHED_REDUCTIONS = {
    "cogvideox-2b": PublishedReduction(
        "euclidean_cogvideox-2b_cache5.safetensors",
        30,
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
        "euclidean_hyvideo_cache3.safetensors",
        60,
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
        "euclidean_fast-hyvideo_cache1.safetensors",
        60,
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
        "euclidean_mochi_cache3.safetensors",
        48,
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


@checked
def published_reduction(
    name: str,
    table: str | Path | None = None,
    speed: Speed | None = None,
    seed: int = 0,
    *,
    tables: str | Path | None = None,
) -> TokenReduction:
    """A published configuration with its table of tiers.

    ``published_reduction("mochi-1", "fast", tables="schedulers")`` finds the table by its name in a
    folder; ``published_reduction("mochi-1", "tiers.safetensors", "fast")`` reads a file.

    Args:
        name: one of `PUBLISHED_REDUCTIONS`.
        table: the authors' safetensors file of tiers; or, with ``tables``, the speed.
        speed: "base" (the default) or "fast".
        seed: seed of the choice of destinations.
        tables: instead of ``table``, the folder of the authors' tables.

    Raises:
        OptionError: the name or the speed is unknown, or you pass no table, or two.
        ScheduleError: the table is incomplete, or belongs to another model.
        FileError: the table cannot be read.
    """
    if not isinstance(name, str) or name not in PUBLISHED_REDUCTIONS:
        raise OptionError(
            f"unknown published reduction {shown(name)}; {did_you_mean(name, PUBLISHED_REDUCTIONS)}"
            f"They are {sorted(PUBLISHED_REDUCTIONS)}"
        )
    if table in get_args(Speed):
        if speed not in (None, table):
            raise OptionError(
                f"published_reduction: speed: got {table!r} in the second place and "
                f"speed={shown(speed)}; say it once"
            )
        table, speed = None, cast(Speed, table)
    speed = "base" if speed is None else speed
    choice("published_reduction: speed", speed, get_args(Speed))
    known = PUBLISHED_REDUCTIONS[name]
    if (table is None) == (tables is None):
        raise OptionError(
            f"published_reduction: table: got {shown(table)}, wanted a path of {known.table}, or "
            f"tables=, the folder that has it ({AUTHORS}), and not both; got {shown(tables)}"
        )
    if table is not None:
        path = path_of("published_reduction: table", table)
    else:
        path = table_in(path_of("published_reduction: tables", tables), known.table)
    tiers = read_tiers(path)
    measured = Measured(f"{name}, {speed}", grid=known.grid, any_grid=True)
    schedule = Schedule(tiers["query"], tiers["value"], *known.thresholds[speed], measured)
    for what in ("steps", "blocks"):
        if (got := getattr(schedule, what)) != (wanted := getattr(known, what)):
            raise ScheduleError(
                f"{path}: got tiers for {got} {what}, {name} is published with {wanted}; give "
                f"the table of {name}, {known.table}"
            )
    return TokenReduction(
        destination_stride=known.destination_stride,
        cache_steps=known.cache_steps,
        seed=seed,
        schedule=schedule,
        search="all",
    )
