"""``fisopt export`` from the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import fisopt
from fisopt import FrameInterleave, Recipe, models
from fisopt.cli import app, artefacts
from fisopt.runtime import captures
from tests.conftest import captured
from tests.zoo import zoo


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["export", *args], env={"COLUMNS": "140", "TERM": "dumb"})


@pytest.fixture
def wan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model in the place of the testbed."""
    case, program = zoo()["wan"], captured("wan")
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    monkeypatch.setattr(artefacts, "load", lambda *_: (case.model, case.inputs(5, 3, 4, batch=2)))


@pytest.mark.usefixtures("wan")
def test_writes_what_loads(tmp_path: Path) -> None:
    out = tmp_path / "fast.pt2"
    result = invoke("testbed", "-p", "FrameInterleave(stride=3)", "-o", str(out), "--static")
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output
    assert "runs with torch" in result.output
    assert "frames is fixed: not asked for" in result.output
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    loaded = fisopt.load(out)
    assert loaded.recipe.passes == (FrameInterleave(stride=3),)
    assert torch.isfinite(loaded(**inputs)[0]).all()
    again = invoke("testbed", "-o", str(out))
    assert again.exit_code == 2
    assert "--force" in again.output


@pytest.mark.usefixtures("wan")
def test_a_recipe_and_steps(tmp_path: Path) -> None:
    recipe = Recipe.of(zoo()["wan"].model, [FrameInterleave(steps="1:")])
    path = recipe.save(tmp_path / "recipe.yaml")
    said = ("testbed", "--recipe", str(path), "--format", "text", "-o", str(tmp_path / "out"))
    refused = invoke(*said)
    assert refused.exit_code == 2
    assert "pass steps=, their number (--steps)" in refused.output
    assert invoke(*said, "--steps", "3").exit_code == 0
    text = (tmp_path / "out" / "variant_1.txt").read_text()
    assert "# steps: 1, 2 of 3" in text


def test_a_published_name_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("wan2.1-1.3b", "-o", str(tmp_path / "wan.pt2"))
    assert result.exit_code == 2
    assert "without weights; use --format text" in result.output
    monkeypatch.setattr(models, "build", partial(models.build, num_layers=2))
    size = ("--height", "32", "--width", "32", "--frames", "9")
    out = tmp_path / "wan.txt"
    result = invoke("wan2.1-1.3b", *size, "--format", "text", "-p", "fis-fast", "-o", str(out))
    assert result.exit_code == 0, result.output
    assert "# WanTransformer3DModel, 3x2x2 tokens" in out.read_text()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("--format", "torchscript", "-o", "t.pt2"), "format must be one of"),
        (("--format", "onnx", "-o", "t.pt2"), "a file of format 'onnx' ends in '.onnx'"),
        (("--format", "onnx", "--native", "-o", "t.onnx"), "ONNX has no operators of fisopt"),
    ],
)
def test_is_refused_before_anything_is_loaded(
    said: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(artefacts, "load")
    result = invoke("testbed", *said)
    assert result.exit_code == 2
    assert message in result.output


def test_the_testbed_draws_one_size(tmp_path: Path) -> None:
    result = invoke("testbed", "--height", "64", "-o", str(tmp_path / "t.pt2"))
    assert result.exit_code == 2
    assert "draws 32 x 32 pixels; leave height" in result.output
