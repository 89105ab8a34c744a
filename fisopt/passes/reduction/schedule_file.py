"""The files of a schedule; see `fisopt.passes.reduction.schedule` for their form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fisopt.checked import path_of
from fisopt.errors import ScheduleError, shown
from fisopt.files import write
from fisopt.passes.reduction.features import (
    FEATURES,
    FORM,
    IN_FILE,
    Feature,
    Thresholds,
    Tiers,
    are_tiers,
)
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.tier_files import table_beside
from fisopt.reading import (
    MalformedError,
    check_file,
    check_readable,
    is_name,
    read_yaml,
    yaml_value,
)

Read = tuple[Tiers, Tiers, Thresholds, Thresholds, Measured]
_OTHERS = ("h", "k")
_KEYS = {*IN_FILE.values(), *_OTHERS, "tiers", "table", "measured"}
_MOST = 1_000_000
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_schedule(path: str | Path, table: str | Path | None = None) -> Read:
    """Read what a `Schedule` is made of; see `Schedule.load`.

    Returns:
        Tiers of the queries and of the values, their thresholds, and what they were measured on.
    """
    path = path_of("Schedule.load: path", path)
    try:
        said = read_yaml(path)
    except MalformedError as error:
        raise ScheduleError(f"{path} is {error}; {FORM}") from error
    if not isinstance(said, Mapping) or not set(said) <= _KEYS:
        found = sorted(map(str, said)) if isinstance(said, Mapping) else type(said).__name__
        raise ScheduleError(f"{path} is no schedule: got {found}; {FORM}")
    for name in _OTHERS:
        if any(share for _, share in _thresholds(path, said.get(name))):
            raise ScheduleError(
                f"{path}: got shares for {name!r}; wanted q (queries) and v (keys and values "
                "together), nothing else can be dropped"
            )
    if "tiers" in said and (table is not None or "table" in said):
        raise ScheduleError(
            f"{path} holds tiers, and a table is named besides; leave one of the two out"
        )
    if "tiers" in said:
        table, tiers = path, _held_tiers(path, said["tiers"])
    else:
        if table is None:
            named = said.get("table")
            table = table_beside(path) if named is None else _named(path, named)
        tiers = read_tiers(path_of("Schedule.load: table", table))
    limits = {f: _thresholds(path, said.get(IN_FILE[f])) for f in FEATURES}
    for feature in FEATURES:
        _check_reached(path, table, tiers[feature], limits[feature])
    return (
        tiers["query"],
        tiers["value"],
        limits["query"],
        limits["value"],
        _measured(path, said.get("measured")),
    )


def write_schedule(
    path: str | Path,
    tiers: Mapping[Feature, Tiers],
    thresholds: Mapping[Feature, Thresholds],
    measured: Measured,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write what a `Schedule` is made of; see `Schedule.save`."""
    path, on = path_of("Schedule.save: path", path), measured.plain()
    on.pop("source", None)
    said: dict[str, Any] = {IN_FILE[f]: dict(thresholds[f]) for f in FEATURES}
    said["tiers"] = {IN_FILE[f]: [list(row) for row in tiers[f]] for f in FEATURES}
    said["measured"] = on
    text = yaml.safe_dump(said, sort_keys=False, default_flow_style=None)
    check_readable(path, text, yaml_value, ScheduleError)
    if extra is not None:
        write(path.with_suffix(".safetensors"), save(dict(extra)))
    write(path, text)


def read_tiers(path: Path) -> dict[Feature, Tiers]:
    """Read the tables of a safetensors file; others than those of the features are left out.

    Raises:
        ScheduleError: the file is not complete, or has no integer table for a feature.
        FileError: it cannot be read.
    """
    try:
        check_file(path)
        with safe_open(path, framework="pt") as held:
            names = sorted(held.keys())
            found = {f: held.get_tensor(n) for f, n in IN_FILE.items() if n in names}
    except SafetensorError as error:
        raise ScheduleError(
            f"{path} is not a complete safetensors file: {error}; copy it again"
        ) from error
    for feature, name in IN_FILE.items():
        if feature not in found:
            raise ScheduleError(
                f"{path} has no table {name!r} for {feature}; it holds {names}. Wanted integer "
                "tables [blocks, steps] named q and v"
            )
        tensor = found[feature]
        if (
            tensor.ndim != 2
            or tensor.dtype not in _INTEGERS
            or max(*tensor.shape, tensor.numel()) > _MOST
        ):
            raise ScheduleError(
                f"{path}: table {name!r} is {list(tensor.shape)} of {tensor.dtype}, wanted "
                f"integers [blocks, steps], {_MOST:,} at most"
            )
    return {f: tuple(tuple(row) for row in t.tolist()) for f, t in found.items()}


def _held_tiers(path: Path, said: object) -> dict[Feature, Tiers]:
    """The tables that a YAML file holds itself."""
    held = said if isinstance(said, Mapping) else {}
    if set(held) != set(IN_FILE.values()) or not all(map(are_tiers, held.values())):
        raise ScheduleError(f"{path}: got tiers={shown(said)}; {FORM}")
    return {f: tuple(tuple(row) for row in held[name]) for f, name in IN_FILE.items()}


def _thresholds(path: Path, said: object) -> Thresholds:
    if said is None:
        return ()
    if not isinstance(said, Mapping):
        raise ScheduleError(f"{path}: got thresholds {said!r}; {FORM}")
    return tuple(said.items())


def _check_reached(path: Path, table: str | Path, tiers: Tiers, limits: Thresholds) -> None:
    """Refuse thresholds that no tier reaches: with such a table they would drop nothing."""
    least = min((tier for tier, share in limits if isinstance(tier, int) and share), default=None)
    most = max((tier for row in tiers for tier in row), default=0)
    if least is not None and most < least:
        raise ScheduleError(
            f"{path} drops tokens from tier {least} on, and the highest tier of {table} is {most}: "
            "nothing would be dropped. Give the table that the thresholds were chosen for"
        )


def _named(path: Path, name: object) -> Path:
    """The table that a file of thresholds names, which is beside it."""
    if not is_name(name):
        raise ScheduleError(
            f"{path}: got table {shown(name)}, wanted the name of a file in its folder; pass "
            "table= for one that is elsewhere"
        )
    return path.parent / str(name)


def _measured(path: Path, said: object) -> Measured:
    if said is None:
        return Measured(str(path))
    known = set(vars(Measured())) - {"source"}
    if not isinstance(said, Mapping) or not set(said) <= known:
        raise ScheduleError(f"{path}: got measured={said!r}, wanted some of {sorted(known)}")
    grid = said.get("grid")
    if grid is not None and (not isinstance(grid, list) or len(grid) != 3):
        raise ScheduleError(f"{path}: got grid={grid!r}, wanted [frames, rows, columns]")
    try:
        return Measured.from_plain({**said, "source": str(path)})
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error
