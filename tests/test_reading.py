"""Files that nobody vouches for: bounded sizes, depths, counts and numbers, regular files only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fisopt
from fisopt import FileError, FisoptError, MaskTable, RadialDecay, Schedule, ScheduleError
from fisopt.codegen.choose import remembered
from fisopt.errors import OptionError, RecipeError
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.schedule_file import read_tiers
from fisopt.reading import MOST_YAML, MalformedError, json_value, read_bytes, yaml_value
from fisopt.recipe.recipe import Recipe

BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))
READERS: dict[str, tuple[Callable[[Path], Any], type[FisoptError]]] = {
    "recipe": (Recipe.load, RecipeError),
    "schedule": (Schedule.load, ScheduleError),
    "mask table": (MaskTable.load, OptionError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, "{a: " * 100_000, "- " * 50_000, BOMB, "a: &b [*b]", "a: 2001-99-99"),
        *(
            "a: " + "9" * 5_000,
            "a: 1" + "0" * 400,
            "a: " + "1:" * 9_000 + "1",
            "\x00",
            "a: !!set 3",
        ),
        *('{"masks": {"a": ' + "[" * 100_000, '{"masks": {"a": 1' + "0" * 400 + "}}", "\udcff"),
        *("a: !!bool x", "a: !!int ''", "[a, [b", "!!python/object/apply:os.system [echo]", ""),
    ],
    ids=range(19),
)
def test_every_reader_names_the_file(reader: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(text.encode(errors="surrogateescape"))
    load, error = READERS[reader]
    with pytest.raises(error, match=r"file\.txt"):
        load(path)


@pytest.mark.parametrize("reader", READERS)
def test_no_pipe_and_no_device(reader: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(FileError, match=f"{path} cannot be read: it is no regular file"):
            READERS[reader][0](path)
    if reader == "schedule":
        (tmp_path / "s.yaml").write_text("q: {3: .5}\ntable: pipe")
        with pytest.raises(FileError, match="no regular file"):
            Schedule.load(tmp_path / "s.yaml")


def test_values_are_counted_before_they_are_made() -> None:
    with pytest.raises(MalformedError, match="more than 9 values"):
        json_value("[[],[],[],[],[]]", 9)
    assert json_value("[[],[],[]]", 9) == [[], [], []]
    with pytest.raises(MalformedError, match="more than 200,000 values"):
        yaml_value("[" + "1," * MOST_YAML + "]")
    assert yaml_value("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    assert read_bytes(path, 11) == bytes(11)
    with pytest.raises(FileError, match="got 11 bytes, wanted at most 10"):
        read_bytes(path, 10)


def test_text_that_cannot_be_printed() -> None:
    for text in ('"\\ud800"', '{"\\udc00": 1}', '["a", ["\\ud800"]]'):
        with pytest.raises(MalformedError, match="not Unicode"):
            json_value(text)


@pytest.mark.parametrize("name", ["../tiers.safetensors", "/etc/passwd", "a/b", "3", "[a]", ".."])
def test_the_table_of_a_schedule_is_beside_it(name: str, tmp_path: Path) -> None:
    tiers = torch.tensor([[1, 9], [3, 4]])
    save_file({"q": tiers, "v": tiers.clone()}, tmp_path / "tiers.safetensors")
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "s.yaml"
    path.write_text(f"q: {{3: .5}}\ntable: {name}")
    with pytest.raises(ScheduleError, match=r"s\.yaml: got table .* wanted the name of a file"):
        Schedule.load(path)
    assert Schedule.load(path, tmp_path / "tiers.safetensors").steps == 2


def test_a_table_of_no_steps_and_too_many_blocks(tmp_path: Path) -> None:
    """Which takes no bytes in the file, and as lists all that there are."""
    path = tmp_path / "t.safetensors"
    form = {"dtype": "U8", "shape": [1 << 40, 0], "data_offsets": [0, 0]}
    header = json.dumps({"q": form, "v": form}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ScheduleError, match=r"t\.safetensors: table 'q' is \[1099511627776, 0\]"):
        read_tiers(path)


def test_an_option_of_a_recipe_names_no_file(tmp_path: Path) -> None:
    saved = Recipe.of(torch.nn.Linear(2, 2), [fisopt.TokenReduction(0.5)]).save(tmp_path / "r.yaml")
    text = saved.read_text()
    for name in ("/etc/passwd", "s.yaml"):
        saved.write_text(text.replace("schedule: null", f"schedule: {name}"))
        with pytest.raises(RecipeError, match=r"TokenReduction\.schedule names the file"):
            Recipe.load(saved)


def test_a_recipe_of_values_is_bounded_too() -> None:
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    said = {"fisopt_recipe": 1, "model": {}, "versions": {}, "passes": deep}
    with pytest.raises(RecipeError, match="here is no recipe: it is nested more than 64 times"):
        Recipe.from_plain(said, "here")


def test_what_a_schedule_was_measured_on(tmp_path: Path) -> None:
    """A word in the place of false would let it be used at another grid."""
    tiers = torch.tensor([[1, 9]])
    save_file({"q": tiers, "v": tiers.clone()}, tmp_path / "t.safetensors")
    path = tmp_path / "s.yaml"
    for said in (
        *("any_grid: 'no'", "model: 3", "prompts: [x]", "seed: {}", "grid: [a, b, c]", "target: 1"),
        *("seed: true", "grid: [1, 2, 1.5]"),
    ):
        path.write_text(f"q: {{1: .5}}\ntable: t.safetensors\nmeasured: {{{said}}}")
        with pytest.raises(ScheduleError, match=r"s\.yaml: what a schedule was measured on: got"):
            Schedule.load(path)


def test_a_schedule_that_is_made_in_code_has_a_name() -> None:
    assert str(Measured()) == "(no name)"
    assert str(Schedule(((1,),), ((1,),), (), ())) == "schedule (no name)"


def test_numbers_of_more_than_64_bits_in_code() -> None:
    for make in (
        lambda n: RadialDecay(n),
        lambda n: fisopt.SlidingWindow(n),
        lambda n: fisopt.TileMask(n),
        lambda n: fisopt.FrameInterleave(stride=n),
        lambda n: fisopt.FrameInterleave(blocks=n),
        lambda n: fisopt.FrameInterleave(steps=(n,)),
        lambda n: fisopt.TokenReduction(0.5, cache_steps=n),
        lambda n: fisopt.TokenReduction(0.5, seed=n),
        lambda n: fisopt.TokenReduction(0.5, destination_stride=(n, 1, 1)),
    ):
        for number in (10**400, 10**5_000):
            with pytest.raises(OptionError, match="must "):
                make(number)


def test_choices_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for text in (
        "[" * 100_000,
        '{"a": ' * 100_000,
        "9" * 5_000,
        '{"k": {"reference": 1' + "0" * 400,
    ):
        path.write_text(text)
        with pytest.warns(RuntimeWarning, match=r"gpu\.json is made again"):
            assert remembered(path) == {}
    os.mkfifo(tmp_path / "pipe.json")
    assert remembered(tmp_path / "pipe.json") == {}


def too_large(kind: str) -> tuple[Any, type[FisoptError]]:
    """Something of more values than its reader takes."""
    schedule = Schedule(((0,) * 300,) * 400, ((0,) * 300,) * 400, (), ())
    if kind == "schedule":
        return schedule, ScheduleError
    return MaskTable({f"blocks.{i}": RadialDecay(1) for i in range(400)}), OptionError


@pytest.mark.parametrize("kind", ["schedule", "mask table"])
def test_what_could_not_be_read_is_not_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_value, "__defaults__", (300,))
    held, error = too_large(kind)
    (path := tmp_path / "kept").write_text("before")
    with pytest.raises(error, match=r"kept is not written, since it could not be read: it is of"):
        held.save(path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]
