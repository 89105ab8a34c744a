"""``fisopt tune`` from the command line to its recipe, on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fisopt
from fisopt.cli import app
from fisopt.cli.sources import Source
from fisopt.tuning import component as component_module
from fisopt.tuning import search
from fisopt.tuning.option import Option
from tests.denoiser import Denoiser

pytestmark = [pytest.mark.xdist_group("wan"), pytest.mark.usefixtures("captured_once")]


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, ["tune", *args])


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Denoiser:
    made, few = Denoiser(), (Option("self_attention", 2),)
    monkeypatch.setattr(Source, "load", lambda _: made)
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr(search, "REPAIRS", 1)
    monkeypatch.setattr(
        component_module, "options_of", lambda part, _: few if part == "self_attention" else ()
    )
    return made


def test_writes_a_recipe_and_a_page(pipeline: Denoiser, tmp_path: Path) -> None:
    out = tmp_path / "new" / "r.yaml"
    result = invoke(
        *("some", "--target", "1.1x", "--steps", "2", "--prompt", "one", "--prompt", "two"),
        *("--out", str(out), "--minutes", "9"),
    )
    assert result.exit_code == 0, result.output
    assert "target 1.1x" in result.output
    assert "measured alone" in result.output
    assert set(pipeline.prompts) == {"one", "two"}
    recipe = fisopt.Recipe.load(out)
    assert recipe.tuned["target"] == "1.1x"
    assert recipe.tuned["steps"] == 2
    assert recipe.passes
    assert out.with_suffix(".measured.json").is_file()
    page = out.with_suffix(".html").read_text()
    assert "Tuned for 1.1x" in page
    assert "fisopt tune some --target 1.1x" in page


@pytest.mark.slow
def test_fp8_is_searched_with_and_written(pipeline: Denoiser, tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    line = ("some", "--target", "1.1x", "--steps", "2", "--prompt", "a", "--prompt", "b")
    result = invoke(*line, "--linear", "fp8-simulated", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "linears in FP8 alone leave" in result.output
    assert fisopt.Recipe.load(out).kernels.linear == "fp8-simulated"
    assert "--linear fp8-simulated" in out.with_suffix(".html").read_text()


def test_an_unknown_precision_is_refused(pipeline: Denoiser, tmp_path: Path) -> None:
    line = ("some", "--target", "1.1x", "--linear", "int4", "--out", str(tmp_path / "r.yaml"))
    wrong = invoke(*line)
    assert wrong.exit_code == 2
    assert "linear must be one of" in wrong.output
    assert not pipeline.prompts


def test_a_dry_run_writes_nothing(pipeline: Denoiser, tmp_path: Path) -> None:
    result = invoke(
        *("some", "--target", "2x", "--steps", "2", "--dry-run", "--out", str(tmp_path / "r.yaml")),
        *("--prompt", "one", "--prompt", "two"),
    )
    assert result.exit_code == 0, result.output
    assert "nothing was run" in result.output
    assert "self_attention stride 2 all everywhere" in result.output
    assert "GiB" in result.output
    assert not list(tmp_path.iterdir())
    assert pipeline.prompts == ["one"]


def test_a_pass_of_the_user_is_an_option(
    pipeline: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (Path(__file__).parents[1] / "examples" / "own_pass" / "mypasses.py").read_text()
    (tmp_path / "tuned_passes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    given = ("some", "--target", "2x", "--steps", "2", "--dry-run", "--prompt", "one")
    out = ("--prompt", "two", "--out", str(tmp_path / "r.yaml"), "--import", "tuned_passes")
    result = invoke(*given, *out, "--pass", 'tuned_passes.SkipCross(blocks="1:")')
    assert result.exit_code == 0, result.output
    assert "SkipCross(blocks='1:'" in result.output
    result = invoke(*given, *out, "--pass", "tuned_passes.NotThere()")
    assert result.exit_code == 2
    assert "tuned_passes has no pass NotThere" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("testbed", "--target", "fast"), "wanted '2x'"),
        (("testbed", "--target", "0.5x"), "slower than dense"),
        (("testbed", "--target", "2x", "--minutes", "-1"), "minutes must be a number above 0"),
        (("nothing", "--target", "2x"), "'nothing' is no pipeline"),
    ],
)
def test_refusals(args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
