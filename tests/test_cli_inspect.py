"""`fisopt inspect` with every pass and preset, on a published model of few layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import fisopt
from fisopt import models
from fisopt.cli import app, inspection
from fisopt.passes import figures
from fisopt.passes.figures import Figure
from fisopt.passes.presets import PASSES, PRESETS
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.schedule import Schedule

pytestmark = pytest.mark.xdist_group("inspect")  # captured in one process
MODEL = ("wan2.1-1.3b", "--height", "64", "--width", "64", "--frames", "17")
LAYERS = 5


@cache
def captured() -> tuple[torch.nn.Module, fisopt.Program]:
    """The model that the command builds, captured once: what differs is what passes make of it."""
    model = models.build(MODEL[0], num_layers=LAYERS, ffn_dim=64)
    inputs = models.example_inputs(model, height=64, width=64, num_frames=17)
    return model, fisopt.capture(model, inputs)


@pytest.fixture(autouse=True)
def once() -> Iterator[None]:
    model, program = captured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda name, **_: model)
        patch.setattr(fisopt, "capture", lambda model, inputs: program)
        yield


def inspect(*args: str) -> Result:
    return CliRunner().invoke(
        app, ["inspect", *MODEL, *args], env={"COLUMNS": "140", "TERM": "dumb"}
    )


def shown(*args: str) -> str:
    """What is printed; it is a table and a text, and no value of a pass floods it."""
    result = inspect(*args)
    assert result.exit_code == 0, result.output
    for line in ("One forward call", "predicted speed-up", "program after the passes"):
        assert line in result.output
    assert len(result.output) < 20_000
    return result.output


def test_the_answer_is_in_the_first_ten_lines() -> None:
    """On a narrow terminal too: the model, the passes, the speed-up, and how long it took."""
    passes = ("--pass", "FrameInterleave(stride=3, steps='1:')")
    for columns in ("80", "140"):
        result = CliRunner().invoke(
            app, ["inspect", *MODEL, *passes], env={"COLUMNS": columns, "TERM": "dumb"}
        )
        first = " ".join(result.stdout.splitlines()[:10])
        for said in (
            "17 frames of 64 x 64 pixels",
            "FrameInterleave(stride=3",
            "predicted speed-up",
            "(dense steps: 0)",
        ):
            assert said in first, columns
        assert re.search(
            r"alone in [\d.]+ s: built in [\d.]+ s, captured in [\d.]+ s, rewritten in", first
        )


@pytest.mark.parametrize("name", [*PRESETS, *PASSES])
def test_every_pass_and_preset(name: str) -> None:
    options = "(degree=2)" if name == "SequenceParallel" else ""  # no process has a rank here
    said = shown("--pass", name + options)
    assert name not in PASSES or f"{PASSES[name].__name__}{options or '()'}" in said
    shown("--pass", name + options, "--steps", "1")


@pytest.mark.parametrize(
    ("passes", "lines"),
    [
        (["TokenReduction(query=.5)"], ["matching", "new", "TokenReduction(query=0.5)"]),
        (["TokenReduction(value=.5, cache_steps=2)"], ["(dense steps: none)"]),
        (["TokenReduction"], ["dense: nothing is dropped", "predicted speed-up 1.00x"]),
        (["FrameInterleave(stride=1)"], ["stride 1", "predicted speed-up 1.00x"]),
        (["TileAttention(mask=5)"], ["every tile is kept", "predicted speed-up 1.00x"]),
        (["TileAttention(mask=SlidingWindow(radius=1))"], ["SlidingWindow(radius=1)"]),
        (["fis-fast", "TokenReduction(query=.4)"], ["blocks sparse", "blocks reduced"]),
        (["fis-fast", "TileAttention"], ["blocks sparse", "tile-sparse"]),
        (["StepCache", "fis-fast"], ["over 4 denoising steps", "4 of 5 blocks reused"]),
        (["StepCache(threshold=.1)"], ["not predicted, StepCache decides at each step"]),
        (["TokenReduction(query=.5, destination_stride=(2, 2, 2))"], ["5 of 5 blocks reduced"]),
    ],
)
def test_forms_of_passes(passes: list[str], lines: list[str]) -> None:
    output = shown(*(word for text in passes for word in ("--pass", text)))
    for line in lines:
        assert line in output


def test_passes_that_read_files(tmp_path: Path) -> None:
    """Their tables are named and not printed."""
    tiers = tuple(tuple(range(4)) for _ in range(LAYERS))
    Schedule(tiers, tiers, ((0, 0.5),), ((0, 0.25),), Measured("mine")).save(tmp_path / "s.yaml")
    output = shown("--pass", f'TokenReduction(schedule="{tmp_path / "s.yaml"}")')
    assert "s.yaml: 5 blocks x 4 steps>" in output
    paths = [f"blocks.{i}" for i in range(LAYERS)]
    rows = [[i <= j for i in range(5)] for j in range(5)]
    masks: dict[str, Any] = dict.fromkeys(paths, fisopt.FrameTable(rows))
    fisopt.MaskTable(masks).save(tmp_path / "m.json")
    output = shown("--pass", f'TileAttention(table="{tmp_path / "m.json"}")')
    assert "<mask table of 5 blocks>" in output
    assert "False" not in output.split("program as captured")[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--pass", "fis-balance"), "'fis-balance'; did you mean fis-balanced"),
        (("--pass", "FrameInterlaeve(stride=2)"), "did you mean FrameInterleave"),
        (("--pass", "fis-a(stride=2)"), "a preset has no options; write fis-a"),
        (("--pass", "FrameInterleave(stride=2, stride=3)"), "has stride twice"),
        (("--pass", "TokenReduction(query='.5')"), "must be in [0, 1), got '.5'"),
        (("--pass", "TokenReduction(schedule=3)"), "schedule must be a Schedule or"),
        (("--pass", "TokenReduction(schedule='no.yaml')"), "no.yaml cannot be read"),
        (("--pass", "TileAttention(mask=SlidingWindw(radius=1))"), "did you mean SlidingWindow"),
        (("--pass", "TileAttention(mask=SlidingWindow(radios=1))"), "did you mean radius"),
        (("--pass", "TileAttention(mask=SlidingWindow(1))"), "by name (radius)"),
        (("--pass", "fis-fast", "--pass", "fis-fast"), "is given twice"),
        (("--pass", "fis-a", "--pass", "fis-b"), "has edited this block"),
        (("--pass", "((" * 200), "cannot read pass"),
        (("--pass", "FrameInterleave(stride=" + "-" * 9999 + "1)"), "cannot read pass"),
        (("--pass", "FrameInterleave(stride={[]: 1})"), "is not a literal"),
    ],
)
def test_a_mistake_is_one_short_message(args: tuple[str, ...], message: str) -> None:
    result = inspect(*args)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr) < 1500


def test_what_costs_nobody_knows_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "not in the prediction: mine::scan (3 calls)"
    monkeypatch.setattr(inspection, "not_predicted", lambda *costs: said)
    result = CliRunner().invoke(app, ["inspect", *MODEL, "--pass", "fis-a"])
    assert "x of what is counted" in result.output
    assert said in result.output


def choose(*args: str) -> str:
    result = CliRunner().invoke(app, ["choose", *MODEL, *args], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_choose_names_a_preset_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "fis-faithful": (Figure(4, 1.4, 31.0, 90.0, 24),),
        "fis-fast": (Figure(4, 2.9, 21.0, 80.0, 24),),
    }
    monkeypatch.setattr(figures, "figures", lambda: known)
    for name in {*PRESETS} - {*known, "fis-paper-b"}:
        monkeypatch.delitem(PRESETS, name)
    monkeypatch.setitem(PRESETS, "mine", ("by a threshold", (fisopt.StepCache(0.1),)))
    said = choose("--speed", "1")
    assert said.startswith("fis-faithful: predicted")
    assert "31.0 dB at 1.40x, 4 steps" in said
    assert choose("--speed", "1.09").startswith("fis-fast: predicted")
    assert "no preset reaches 9x at 4 steps" in choose("--speed", "9")
    assert "no preset reaches 2x at 25 steps" in choose("--steps", "25")
    assert "decided in the run" in said
    assert "loses the clips" in said
