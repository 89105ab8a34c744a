"""``fisopt calibrate`` from the command line to its files, on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fisopt import Schedule
from fisopt.cli import app
from fisopt.cli.expressions import parse_stride
from fisopt.cli.sources import Source
from fisopt.runtime import captures
from tests.conftest import captured
from tests.tiny_pipeline import Pipeline

pytestmark = pytest.mark.xdist_group("wan")


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, ["calibrate", *args])


def test_writes_schedule_tables_and_heat_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, pipeline = captured("wan"), Pipeline()
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    monkeypatch.setattr(Source, "load", lambda _: pipeline)
    out = tmp_path / "new" / "s.yaml"
    result = invoke(
        *("some", "--prompts", "2", "--steps", "2", "--keep", "0.7", "--stride", "2,1,2"),
        *("--prompt", "one", "--prompt", "two", "--seed", "3", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    assert pipeline.prompts == ["one", "two"]
    schedule = Schedule.load(out)
    assert (schedule.blocks, schedule.steps) == (4, 2)
    assert schedule.measured.grid == (5, 3, 4)
    assert (schedule.measured.prompts, schedule.measured.seed) == (2, 3)
    cost = schedule.attention_cost((5, 3, 4), (2, 1, 2))
    assert cost <= 0.7
    assert f"{cost:.3f} of the dense one" in result.output
    assert load_file(out.with_suffix(".safetensors"))["query_profile"].shape == (4, 2, 11)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 400
        assert len(set(picture.convert("L").resize((60, 30)).getdata())) > 5, "an empty picture"
    assert sorted(p.name for p in out.parent.iterdir()) == ["s.png", "s.safetensors", "s.yaml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing", "--keep", "0.5"), "'nothing' is no pipeline"),
        (("testbed", "--keep", "0.5", "--height", "64"), "unexpected keyword argument"),
        (("testbed",), "give a target ratio (--keep) or a target error"),
        (("testbed", "--keep", "0.5", "--stride", "2,2"), "three ints like 2,2,2"),
    ],
)
def test_refusals(args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_stride() -> None:
    assert parse_stride("6, 2,2") == (6, 2, 2)
    for text in ("6,2", "0,2,2", "a,b,c", "-1,2,2", ""):
        with pytest.raises(ValueError, match="stride must be FRAMES,ROWS,COLUMNS"):
            parse_stride(text)
