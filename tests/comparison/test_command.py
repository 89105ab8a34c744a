from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fisopt
from fisopt.cli import app
from fisopt.cli.comparing import configurations, read_prompts, scorer_named
from fisopt.models import testbed
from tests.comparison.tiny import PROMPTS, STRIDE, pipeline, transformer
from tests.page.browser import opened

pytestmark = pytest.mark.xdist_group("tiny testbed of compare")


def command(*args: str) -> Result:
    return CliRunner().invoke(app, ["compare", *args], env={"COLUMNS": "160", "TERM": "dumb"})


@pytest.fixture
def tiny(captured_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Any = None) -> Any:
        return pipeline()

    monkeypatch.setattr(testbed, "load_testbed", load)


@pytest.mark.usefixtures("tiny")
def test_compare_writes_a_page_and_figures(tmp_path: Path) -> None:
    file, recipe = tmp_path / "prompts.txt", tmp_path / "fast.yaml"
    file.write_text("# two of them\n" + "\n\n".join(PROMPTS) + "\n")
    fisopt.Recipe.of(transformer(), [STRIDE]).save(recipe)
    out = tmp_path / "out"
    result = command(
        "testbed", "--prompts", str(file), "--config", "fis-faithful", "--config", str(recipe),
        "-c", "dense", "--steps", "2", "--backend", "eager", "--floors", "1", "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.json"}
    said = json.loads((out / "compare.json").read_text())
    names = [row["name"] for row in said["configurations"]]
    assert names[:3] == ["dense", "fis-faithful", "fast"]
    assert len(names) == 5
    for name in names:
        assert name in result.output
    with opened(out / "compare.html") as (page, complaints):
        told = page.inner_text("#command")
        assert shlex.split(told)[:5] == ["fisopt", "compare", "testbed", "--prompts", str(file)]
        assert page.input_value("#right") == "fis-faithful"
        page.select_option("#right", "fast")
        page.select_option("#view", "flip")
        assert page.locator(".chart svg").count() >= 4
        assert complaints == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere/at/all",), "no pipeline"),
        (("testbed", "--config", "fis-c"), "did you mean"),
        (("testbed", "-c", "fis-a", "-c", "fis-a"), "twice"),
        (("testbed", "--scorer", "lpips"), "wanted clip"),
        (("testbed", "--measure", "fvd"), "--measure must be one of ['lpips']"),
        (("testbed", "--prompts", "missing.txt"), "missing.txt cannot be read"),
        (("testbed", "--backend", "inducter"), "did you mean inductor"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = command(*args, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_configurations_are_named_as_they_are_written() -> None:
    found = configurations(
        ["fis-a", "fis-faithful + StepCache(threshold=0.1)", "a/b.yaml", "dense"]
    )
    assert list(found) == ["fis-a", "fis-faithful + StepCache(threshold=0.1)", "b", "dense"]
    assert found["b"] == "a/b.yaml"
    assert [type(x).__name__ for x in list(found.values())[1]] == ["FrameInterleave", "StepCache"]


def test_file_of_prompts_holds_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a cat \n\n# not this\na dog\n")
    assert read_prompts(path) == ["a cat", "a dog"]
    path.write_text("# nothing\n")
    with pytest.raises(fisopt.InputError, match="holds no prompt"):
        read_prompts(path)


def test_scorer_has_a_model() -> None:
    assert scorer_named(None) is None
    with pytest.raises(fisopt.OptionError, match="nowhere"):
        scorer_named("clip:./nowhere")
