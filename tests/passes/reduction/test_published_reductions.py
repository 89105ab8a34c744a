"""Published reductions: shapes, tables of others, text, and the authors' own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fisopt
from fisopt import PUBLISHED_REDUCTIONS, Schedule, ScheduleError, TokenReduction
from fisopt.cli.expressions import parse_pass
from fisopt.errors import FileError, OptionError
from fisopt.passes.reduction.features import FEATURES
from fisopt.passes.reduction.schedule_file import read_tiers
from fisopt.rewrite.partition import destination_count
from fisopt.rewrite.pass_base import Step
from tests.asymrnr import authors_data, needs_authors_data

SPEEDS = ("base", "fast")
every = pytest.mark.parametrize("name", PUBLISHED_REDUCTIONS)


def tiers(folder: Path, name: str, blocks: int = 0, steps: int = 0) -> Path:
    """A made-up table under the authors' name of it."""
    known = PUBLISHED_REDUCTIONS[name]
    shape = (blocks or known.blocks, steps or known.steps)
    table = torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(1))
    path = folder / known.table
    save_file({"q": table, "v": table.flip(0).contiguous()}, path)
    return path


@every
@pytest.mark.parametrize("speed", SPEEDS)
def test_published(tmp_path: Path, name: str, speed: Any) -> None:
    known = PUBLISHED_REDUCTIONS[name]
    table = tiers(tmp_path, name)
    step = fisopt.published_reduction(name, table, speed)
    assert isinstance(step.schedule, Schedule)
    assert (step.cache_steps, step.destination_stride) == (
        known.cache_steps,
        known.destination_stride,
    )
    assert step.schedule.measured.grid == known.grid
    counts = {"cogvideox-2b": 1980, "hunyuanvideo": 2550, "fasthunyuan": 1760, "mochi-1": 780}
    assert destination_count(known.grid, known.destination_stride) == counts[name]
    with pytest.raises(ScheduleError, match=rf"has tiers for {known.steps} steps, the run needs"):
        step.at(Step(0, known.steps + 1))
    assert read_tiers(table)["query"] == step.schedule.query
    assert step == fisopt.published_reduction(name, speed, tables=tmp_path)
    assert step == parse_pass(f"published_reduction({name!r}, {speed!r}, tables='{tmp_path}')")
    assert step == parse_pass(
        f"published_reduction(name={name!r}, table='{table}', speed={speed!r})"
    )


@every
@pytest.mark.parametrize("other", PUBLISHED_REDUCTIONS)
def test_the_table_of_another(tmp_path: Path, name: str, other: str) -> None:
    """Tables differ in blocks, in steps or in both; FastHunyuan has HunyuanVideo's blocks."""
    table = tiers(tmp_path, other)
    if name == other:
        assert fisopt.published_reduction(name, table).schedule is not None
        return
    with pytest.raises(ScheduleError, match=rf"got tiers for \d+ (steps|blocks), {name} is publ"):
        fisopt.published_reduction(name, table)


@every
@pytest.mark.parametrize("off", [-1, 1, 12])
def test_a_table_of_other_blocks(tmp_path: Path, name: str, off: int) -> None:
    """CogVideoX-5B has 42 blocks where CogVideoX-2B has 30, and as many steps."""
    blocks = PUBLISHED_REDUCTIONS[name].blocks
    table = tiers(tmp_path, name, blocks + off)
    with pytest.raises(ScheduleError) as error:
        fisopt.published_reduction(name, table)
    assert f"got tiers for {blocks + off} blocks, {name} is published with {blocks}" in str(
        error.value
    )
    assert PUBLISHED_REDUCTIONS[name].table in str(error.value)


def test_a_table_of_other_steps(tmp_path: Path) -> None:
    table = tiers(tmp_path, "mochi-1", steps=6)
    with pytest.raises(ScheduleError, match="got tiers for 6 steps, mochi-1 is published with 30"):
        fisopt.published_reduction("mochi-1", table)


def test_names_and_options(tmp_path: Path) -> None:
    table = tiers(tmp_path, "mochi-1")
    make: Any = fisopt.published_reduction
    with pytest.raises(OptionError, match="did you mean hunyuanvideo"):
        make("hunyuan-video", tmp_path / "x")
    with pytest.raises(OptionError, match=r"speed must be one of \['base', 'fast'\], got 'slow'"):
        make("mochi-1", tmp_path / "x", "slow")
    for given in ({}, {"table": table, "tables": tmp_path}):
        with pytest.raises(
            OptionError, match=r"wanted a path of euclidean_mochi_cache3\.safetensors, or"
        ):
            make("mochi-1", **given)
    with pytest.raises(FileError, match=r"has no table euclidean_hyvideo_cache3\.safetens"):
        make("hunyuanvideo", tables=tmp_path)
    with pytest.raises(OptionError, match="has no option 'tabels'; did you mean tables"):
        make("mochi-1", tabels=tmp_path)
    for said, other in (SPEEDS, SPEEDS[::-1]):
        with pytest.raises(
            OptionError, match=f"got '{said}' in the second place and speed='{other}'"
        ):
            make("mochi-1", said, speed=other, tables=tmp_path)
    assert make("mochi-1", "fast", speed="fast", tables=tmp_path) == make("mochi-1", table, "fast")
    with pytest.raises(FileError, match="gone cannot be read: No such file"):
        make("mochi-1", tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("published_reduction", "missing a required argument: 'name'"),
        ("published_reduction()", "missing a required argument: 'name'"),
        ("published_reduction('mochi-1', tabels='x')", "has no option 'tabels'; did you mean tab"),
        ("published_reduction('mochi-1', 'x', table='y')", "published_reduction has table twice"),
        (
            "published_reduction('mochi-1', print())",
            r"table: 'print\(\)' is neither a literal nor a mask",
        ),
        ("published_reduktion('mochi-1')", "did you mean published_reduction"),
        ("TokenReduction(0.5)", "give the options of TokenReduction by name"),
    ],
)
def test_text_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_pass(text)


@needs_authors_data
@every
@pytest.mark.parametrize("speed", SPEEDS)
def test_the_authors_files(name: str, speed: str) -> None:
    """Thresholds as they stand in the authors' YAML files are those that are built in."""
    built = fisopt.published_reduction(name, speed, tables=authors_data())
    stem = PUBLISHED_REDUCTIONS[name].table.removeprefix("euclidean_").removesuffix(".safetensors")
    path = authors_data() / f"{stem}_{SPEEDS.index(speed)}.yaml"
    read = parse_pass(f"TokenReduction(schedule={str(path)!r})")
    assert isinstance(read, TokenReduction)
    assert isinstance(read.schedule, Schedule)
    assert isinstance(built.schedule, Schedule)
    assert (read.schedule.query, read.schedule.value) == (
        built.schedule.query,
        built.schedule.value,
    )
    for feature in FEATURES:
        assert dict(read.schedule.thresholds(feature)) == dict(built.schedule.thresholds(feature))


@needs_authors_data
def test_the_table_of_cogvideox_5b_is_not_that_of_2b() -> None:
    table = authors_data() / "euclidean_cogvideox-5b_cache5.safetensors"
    with pytest.raises(ScheduleError, match="got tiers for 42 blocks, cogvideox-2b is published w"):
        fisopt.published_reduction("cogvideox-2b", table)
