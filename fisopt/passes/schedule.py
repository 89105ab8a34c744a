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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fisopt.checked import Checked, is_int, path_of
from fisopt.errors import ScheduleError, shown
from fisopt.files import write
from fisopt.passes.tier_files import table_beside
from fisopt.reading import (
    MalformedError,
    check_file,
    check_readable,
    is_name,
    read_yaml,
    yaml_value,
)
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.partition import Cells, destination_count, sources_to_keep
from fisopt.rewrite.pass_base import Step

Feature = Literal["query", "value"]
FEATURES: tuple[Feature, ...] = ("query", "value")
IN_FILE: dict[Feature, str] = {"query": "q", "value": "v"}
Tiers = tuple[tuple[int, ...], ...]
"""Tiers by block, then by step."""
Thresholds = tuple[tuple[int, float], ...]
"""Pairs of a tier and the dropped share that is used from that tier on."""

_FORM = (
    "wanted {q: {tier: ratio, ...}, v: {tier: ratio, ...}, tiers: {q: [[tier, ...], ...], "
    "v: ...} or table: FILE, measured: {...}}"
)
_OTHERS = ("h", "k")
_KEYS = {*IN_FILE.values(), *_OTHERS, "tiers", "table", "measured"}
_TABLES = ("query", "value", "query_thresholds", "value_thresholds")
_MOST = 1_000_000
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Measured(metaclass=Checked):
    """What a schedule was measured on.

    Attributes:
        source: the file or the name that errors and reports show; equal ones may differ in it.
        model: class of the model; empty if it is not told.
        grid: frames, rows and columns of its tokens; None if it is not told.
        prompts: how many prompts.
        seed: of the choice of destinations.
        target: what the thresholds were chosen for.
        any_grid: whether it may be used at another grid than its own, which the report then says.
    """

    source: str = field(default="", compare=False)
    model: str = ""
    grid: Cells | None = None
    prompts: int = 0
    seed: int = 0
    target: str = ""
    any_grid: bool = False

    def __post_init__(self) -> None:
        kinds = {"source": str, "model": str, "prompts": int, "seed": int, "target": str}
        kinds |= {"any_grid": bool}
        wrong = [name for name, kind in kinds.items() if type(getattr(self, name)) is not kind]
        if self.grid is not None and not _is_grid(self.grid):
            wrong.append("grid")
        if wrong:
            raise ScheduleError(
                f"what a schedule was measured on: got {wrong[0]}="
                f"{shown(getattr(self, wrong[0]))}; wanted text for source, model and target, ints "
                "for prompts and seed, (frames, rows, columns) for grid, true or false for any_grid"
            )

    def __str__(self) -> str:
        return self.source or "(no name)"

    def other_grid(self, layout: TokenLayout) -> str:
        """The grid in words, if one is told and it is not that of a layout."""
        here = (layout.frames, layout.height, layout.width)
        return "" if self.grid in (None, here) else "x".join(map(str, self.grid or ()))

    def plain(self) -> dict[str, Any]:
        """What is told, as plain values."""
        told = {name: value for name, value in vars(self).items() if value}
        return told | ({} if self.grid is None else {"grid": list(self.grid)})

    @staticmethod
    def from_plain(said: Mapping[str, Any]) -> Measured:
        """The inverse of `plain`."""
        grid = said.get("grid")
        return Measured(**{**said, "grid": tuple(grid) if isinstance(grid, list) else grid})


@dataclass(frozen=True)
class Schedule(metaclass=Checked):
    """From feature, block and step to the dropped share.

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
    measured: Measured = Measured()

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
                    raise ScheduleError(f"{self}: got {tier!r}: {ratio!r} for {feature}; {_FORM}")
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
        """Video blocks that it has tiers for."""
        return len(self.query)

    @property
    def steps(self) -> int:
        """Steps that it has tiers for."""
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
        """The step of the table that stands for a step of a run.

        A run of fewer steps reads the table at the same places of the way from noise to video.

        Raises:
            ScheduleError: the run has more steps than the table, or does not say how many.
        """
        if (count := step.count) is None:
            raise ScheduleError(
                f"{self} needs the number of steps of the run, which a scheduler or a pipeline "
                "tells; in a loop of your own say `with optimized.generation(num_steps):`"
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
        """The distinct shares of queries and of values that occur: the shapes of attention."""
        return {
            (self.ratio("query", b, s), self.ratio("value", b, s))
            for b in range(self.blocks)
            for s in range(0, self.steps, cache_steps)
        }

    def attention_cost(
        self, grid: Cells, stride: Cells, *, cache_steps: int = 1, text: int = 0
    ) -> float:
        """Mean cost of a visual attention, matching not counted, as a share of the dense one.

        Args:
            grid: frames, rows and columns of the tokens.
            stride: the cells that hold one destination each.
            cache_steps: steps for which one match, and its shares, are used.
            text: entries that are joined to the sequence.
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
                the one that it names, or the one beside it that `table_beside` finds.

        Raises:
            ScheduleError: a file is not complete, or not of a schedule's form.
            FileError: a file cannot be read.
        """
        path = path_of("Schedule.load: path", path)
        try:
            said = read_yaml(path)
        except MalformedError as error:
            raise ScheduleError(f"{path} is {error}; {_FORM}") from error
        if not isinstance(said, Mapping) or not set(said) <= _KEYS:
            found = sorted(map(str, said)) if isinstance(said, Mapping) else type(said).__name__
            raise ScheduleError(f"{path} is no schedule: got {found}; {_FORM}")
        for name in _OTHERS:
            if any(share for _, share in _thresholds(path, said.get(name))):
                raise ScheduleError(
                    f"{path}: got shares for {name!r}; wanted q (queries) and v (keys and values "
                    "together), nothing else can be dropped"
                )
        if "tiers" in said and (table is not None or "table" in said):
            raise ScheduleError(f"{path} holds tiers, and a table is named as well: leave one out")
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
        return Schedule(
            tiers["query"],
            tiers["value"],
            limits["query"],
            limits["value"],
            _measured(path, said.get("measured")),
        )

    def save(self, path: str | Path, extra: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the schedule as one YAML file, in the place of a file that is there.

        Args:
            path: the YAML file.
            extra: tensors for people, such as what was measured: a safetensors file beside it,
                which no schedule needs.

        Raises:
            ScheduleError: it is larger than what `load` reads.
            FileError: it cannot be written; what was there is unchanged.
        """
        path, measured = path_of("Schedule.save: path", path), self.measured.plain()
        measured.pop("source", None)
        said: dict[str, Any] = {IN_FILE[f]: dict(self.thresholds(f)) for f in FEATURES}
        said["tiers"] = {IN_FILE[f]: [list(row) for row in getattr(self, f)] for f in FEATURES}
        said["measured"] = measured
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
        raise ScheduleError(f"{path} is not a complete safetensors file: {error}") from error
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
    if set(held) != set(IN_FILE.values()) or not all(map(_are_tiers, held.values())):
        raise ScheduleError(f"{path}: got tiers={shown(said)}; {_FORM}")
    return {f: tuple(tuple(row) for row in held[name]) for f, name in IN_FILE.items()}


def _check_form(schedule: Schedule) -> None:
    for feature in FEATURES:
        tiers: object = getattr(schedule, feature)
        limits: object = schedule.thresholds(feature)
        if not _are_tiers(tiers):
            raise ScheduleError(
                f"{schedule}: got {feature}={shown(tiers)}, wanted ints [blocks][steps]"
            )
        if not _are_rows(limits) or any(len(pair) != 2 for pair in limits):
            raise ScheduleError(
                f"{schedule}: got {feature}_thresholds={shown(limits)}, wanted (tier, ratio) pairs"
            )


def _are_tiers(value: object) -> bool:
    return _are_rows(value) and all(type(tier) is int for row in value for tier in row)


def _is_grid(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(is_int, value))


def _are_rows(value: object) -> TypeGuard[Sequence[Sequence[object]]]:
    rows = (tuple, list)
    return isinstance(value, rows) and all(isinstance(row, rows) for row in value)


def _shape_of(tiers: Tiers) -> tuple[int, ...]:
    return (len(tiers), *sorted({len(row) for row in tiers}))


def _thresholds(path: Path, said: object) -> Thresholds:
    if said is None:
        return ()
    if not isinstance(said, Mapping):
        raise ScheduleError(f"{path}: got thresholds {said!r}; {_FORM}")
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
            f"{path}: got table {shown(name)}, wanted the name of a file beside it; pass table= "
            "for one that is elsewhere"
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
