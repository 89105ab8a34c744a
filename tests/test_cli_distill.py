"""``fisopt distill``: trains, goes on, writes what diffusers loads; says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from fisopt.cli import app
from fisopt.distill import Trainer
from fisopt.models import testbed
from fisopt.recipe.recipe import Recipe

PROMPT = "red circle moving left fast over waves"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained testbed of two narrow layers, saved as a trained one is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    model = testbed.build_transformer(num_layers=2, attention_head_dim=16, ffn_dim=32)
    testbed.build_pipeline(model).save_pretrained(folder)
    return folder


def distill(weights: Path, out: Path, *more: str) -> Result:
    options = ["--steps", "2", "--batch", "1", "--frames", "5", "--out", str(out)]
    arguments = ["distill", str(weights), *options, *more]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb"})


def test_few_steps(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"# mine\n{PROMPT}\n{PROMPT.replace('red', 'green')}\n")
    options = ("--teacher-steps", "4", "--prompts", str(file))
    prepared = ("--prepared", str(tmp_path / "data"))
    for steps in (2, 3):  # the second goes on, from what the first has recorded
        result = distill(weights, tmp_path, *options, *prepared, "--train-steps", str(steps))
        assert result.exit_code == 0, result.output
        assert f"after {steps} steps" in result.output
    folder = tmp_path / "student"
    facts = json.loads((folder / "distilled.json").read_text())
    assert (facts["num_inference_steps"], facts["guidance_scale"]) == (2, 1.0)
    assert (tmp_path / "data" / "conditions.safetensors").is_file()
    model = type(testbed.build_transformer()).from_pretrained(folder)
    assert len(model.blocks) == 2


def test_a_sparse_adapter(weights: Path, tmp_path: Path) -> None:
    options = ("--pass", "FrameInterleave(stride=2, blocks=':')", "--prompt", PROMPT, "--lora", "2")
    result = distill(
        weights, tmp_path, *options, "--guidance", "1", "--train-steps", "1", "--through"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "student" / "pytorch_lora_weights.safetensors").is_file()
    assert Recipe.load(tmp_path / "student" / "recipe.yaml").passes


def test_processes_of_a_launcher_do_not_all_write_one_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them; one process with the same variables is alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    few = ("--teacher-steps", "4", "--train-steps", "1", "--prompt", PROMPT)
    recording = ["distill", "prepare", str(weights), "--prompt", PROMPT, "--out", str(tmp_path)]
    recorded = CliRunner().invoke(app, recording, env={"COLUMNS": "160", "TERM": "dumb"})
    for result in (distill(weights, tmp_path, *few), recorded):
        assert result.exit_code == 2
        assert "runs in one process, and its launcher started 2" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distill(weights, tmp_path, *few, "--guidance", "2").exit_code == 0


@pytest.mark.parametrize("lora", [(), ("--lora", "2")], ids=["weights", "adapters"])
def test_weights_in_training_are_of_32_bits(
    weights: Path, tmp_path: Path, lora: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a call computes, and only what is not trained is held."""
    seen: list[Trainer] = []
    real = Trainer.run

    def run(self: Trainer, *args: Any) -> None:
        seen.append(self)
        real(self, *args)

    monkeypatch.setattr(Trainer, "run", run)
    few = ("--teacher-steps", "4", "--guidance", "2", "--train-steps", "1", "--prompt", PROMPT)
    result = distill(weights, tmp_path, *few, "--dtype", "bfloat16", *lora)
    assert result.exit_code == 0, result.output
    assert seen[0].training.precision == torch.bfloat16
    assert {p.dtype for p in seen[0].parameters.values()} == {torch.float32}
    held = {p.dtype for n, p in seen[0].runs.named_parameters() if "lora" not in n}
    assert held == ({torch.bfloat16} if lora else {torch.float32})


def test_float16_is_refused(weights: Path, tmp_path: Path) -> None:
    for lora in ((), ("--lora", "2")):
        result = distill(weights, tmp_path, "--prompt", PROMPT, "--dtype", "float16", *lora)
        assert result.exit_code == 2
        said = " ".join(result.output.split())
        assert "got torch.float16" in said
        assert "wanted torch.bfloat16, or None for float32" in said


def test_prepare_needs_no_text_encoder_later(weights: Path, tmp_path: Path) -> None:
    """What it records is what training would: the same student comes out."""
    few = ("--teacher-steps", "4", "--guidance", "2", "--train-steps", "1")
    assert distill(weights, tmp_path / "a", *few, "--prompt", PROMPT).exit_code == 0
    options = ["--prompt", PROMPT, "--steps", "2", "--frames", "5", "--guidance", "2"]
    data = str(tmp_path / "data")
    result = CliRunner().invoke(
        app, ["distill", "prepare", str(weights), *options, "--out", data], env={"TERM": "dumb"}
    )
    assert result.exit_code == 0, result.output
    assert f"wrote {data}, 1 prompt" in " ".join(result.output.split())
    assert distill(weights, tmp_path / "b", *few, "--prepared", data).exit_code == 0
    said = [(tmp_path / n / "student" / "distilled.json").read_text() for n in "ab"]
    assert json.loads(said[0])["trained"]["loss"] == json.loads(said[1])["trained"]["loss"]


def test_what_is_left_out_is_train() -> None:
    run = CliRunner().invoke
    env = {"COLUMNS": "160", "TERM": "dumb"}
    assert "prepare" in run(app, ["distill", "--help"], env=env).output
    assert run(app, ["distill", "train", "--help"], env=env).output.count("--teacher-steps") > 0
    missing = run(app, ["distill", "--steps", "4"], env=env)
    assert missing.exit_code == 2
    assert "fisopt distill train [OPTIONS]" in missing.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "sparse wants passes, got none"),
        (("--teacher-steps", "5"), "2 segments do not divide the teacher's 5 steps"),
        (("--recipe", "x.yaml", "--pass", "fis-a"), "give --pass or --recipe, not both"),
        (("--pass", "fis-a", "--rate", "-1"), "rate: got -1.0"),
    ],
)
def test_what_is_wrong(
    weights: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = distill(weights, tmp_path, *options, "--prompt", PROMPT)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "student").exists()
