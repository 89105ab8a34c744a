"""``fisopt search``: measures, chooses, checks, goes on after a stop, writes a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import fisopt
from fisopt import MaskTable, SlidingWindow, TileAttention, TileMask
from fisopt.cli import app
from fisopt.cli.expressions import parse_mask, parse_pass
from fisopt.cli.mask_pictures import kept_tiles, write_mask_pictures
from fisopt.models import testbed
from fisopt.tuning.mask_errors import Calls

pytestmark = [pytest.mark.usefixtures("one_testbed"), pytest.mark.xdist_group("testbed")]
PROMPT = "red circle moving left fast over waves"
PICTURES = ("masks.png", "attention.png", "density.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained testbed of two layers, saved as a trained one is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    testbed.build_pipeline(testbed.build_transformer(num_layers=2)).save_pretrained(folder)
    return folder


def search(weights: Path, out: Path, *more: str, steps: int = 1, prompts: int = 2) -> Result:
    options = ["--steps", str(steps), "--guidance", "1", "--out", str(out)]
    for i in range(prompts):
        options += ["--prompt", PROMPT.replace("red", ("red", "green", "blue")[i])]
    arguments = ["search", str(weights), *options, *more]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "TERM": "dumb"})


def test_writes_a_table_that_the_pass_takes(weights: Path, tmp_path: Path) -> None:
    result = search(weights, tmp_path, "--speed", "1.2")
    assert result.exit_code == 0, result.output
    table = MaskTable.load(tmp_path / "masks.json")
    assert [path for path, _ in table.items()] == ["blocks.0", "blocks.1"]
    assert table.measured["prompts"] == [PROMPT, PROMPT.replace("red", "green")]
    assert table.measured["frames"] == 16
    assert table.measured["predicted_speed_up"] >= 1.2
    assert 0 < table.measured["joint_error_mean"] <= table.measured["joint_error_max"]
    module = testbed.load_testbed(weights).transformer.eval()
    step = TileAttention(table=str(tmp_path / "masks.json"))
    call = {
        "hidden_states": torch.randn(1, 8, 16, 32, 32),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 5, 32),
    }
    module = fisopt.optimize(module, [step], call, backend="eager")
    density = module.report.variants[0].density
    assert 1 / density == pytest.approx(table.measured["predicted_speed_up"])
    for name in PICTURES:
        picture = iio.imread(tmp_path / name)
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 10, "blank"


def test_goes_on_where_it_stopped(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = Calls.errors

    def counted(self: Calls, call: Any) -> Any:
        if len(measured) == 1:
            measured.append(0)
            raise KeyboardInterrupt
        measured.append(1)
        return real(self, call)

    monkeypatch.setattr(Calls, "errors", counted)
    assert search(weights, tmp_path, "--threshold", "0.5").exit_code != 0
    assert not (tmp_path / "masks.json").exists()
    held = json.loads((tmp_path / "search.json").read_text())
    assert list(held["prompts"]) == ["0"]
    assert search(weights, tmp_path, "--threshold", "0.5").exit_code == 0
    assert sum(measured) == 2, "the first prompt was measured once, and once the second"
    assert search(weights, tmp_path, "--speed", "1.1").exit_code == 0
    assert sum(measured) == 2, "another way to choose measures nothing"
    again = search(weights, tmp_path, "--threshold", "0.5", "--candidate", "2")
    assert again.exit_code == 2
    assert "was measured with other candidates" in again.output.replace("\n", " ")
    assert sum(measured) == 2
    assert (tmp_path / "masks.json").exists(), "nothing is lost"


def test_threshold_bounds_every_block(weights: Path, tmp_path: Path) -> None:
    candidates = ["--candidate", "1", "--candidate", "SlidingWindow(radius=2)"]
    result = search(weights, tmp_path, "--threshold", "1e-9", *candidates, prompts=1)
    assert result.exit_code == 0, result.output
    assert {mask for _, mask in MaskTable.load(tmp_path / "masks.json").items()} == {None}
    result = search(weights, tmp_path, "--threshold", "1e9", *candidates, prompts=1)
    masks = {mask for _, mask in MaskTable.load(tmp_path / "masks.json").items()}
    assert masks == {TileMask(1)}
    assert "TileMask(k=1)" in result.output
    head = next(line for line in result.output.splitlines() if "next sparser" in line)
    assert head.split() == ["block", "mask", "kept", "error", "next", "sparser"]
    assert "predicted speed-up" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either threshold (--threshold) or target_ratio (--speed)"),
        (("--threshold", "1", "--speed", "2"), "give either"),
        (("--threshold", "0"), "threshold must be more than 0, got 0.0"),
        (("--threshold", "-1"), "threshold must be more than 0, got -1.0"),
        (("--speed", "0.5"), "target ratio must be more than 1, got 0.5"),
        (("--speed", "99"), "out of reach"),
        (("--threshold", "1", "--candidate", "17"), "k=17 is more than the 16 frames"),
        (("--threshold", "1", "--candidate", "Tiles(2)"), "cannot read mask 'Tiles(2)'"),
        (("--threshold", "1", "--candidate", "0"), "k must be an int of at least 1"),
    ],
)
def test_mistakes(weights: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = search(weights, tmp_path, *options, prompts=1)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "masks.json").exists()


def test_a_truncated_file_of_measurements(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text('{"settings": {')
    result = search(weights, tmp_path, "--threshold", "1", prompts=1)
    assert result.exit_code == 2, result.output
    assert "search.json is not complete" in result.output.replace("\n", "")


def test_models_without_weights_are_refused(tmp_path: Path) -> None:
    result = search(Path("wan2.2-a14b"), tmp_path, "--threshold", "1", prompts=1)
    assert result.exit_code == 2
    assert "known by its shapes alone" in result.output


def test_masks_as_text() -> None:
    assert parse_mask("3") == TileMask(3)
    assert parse_mask("SlidingWindow(radius=2)") == SlidingWindow(2)
    assert parse_pass("TileAttention(mask=SlidingWindow(radius=2), steps='1:')") == (
        TileAttention(SlidingWindow(2), steps="1:")
    )
    for text in ("", "None", "SlidingWindow(2)", "open('x')", "TileMask(k=x)"):
        with pytest.raises(ValueError, match="cannot read mask"):
            parse_mask(text)


def test_a_picture_shows_what_is_kept(tmp_path: Path) -> None:
    heads = fisopt.FrameTable([[[True, False], [True, True]], [[True, True], [True, True]]])
    assert kept_tiles(heads, 2).tolist() == [[1.0, 0.5], [1.0, 1.0]]
    assert kept_tiles(None, 2).all()
    maps = {"blocks.0": torch.rand(6, 6), "blocks.1": torch.rand(6, 6)}
    sizes = []
    for k in (1, 6):
        table = MaskTable({"blocks.0": k, "blocks.1": None, "other": None})
        paths = write_mask_pictures(table, 6, maps, tmp_path)
        assert [path.name for path in paths] == list(PICTURES)
        sizes.append((iio.imread(paths[0])[..., :3] == [0x25, 0x63, 0xA8]).all(-1).sum())
    kept = float(TileMask(1).table(6).float().mean())
    assert sizes[0] / sizes[1] == pytest.approx((1 + kept) / 2, rel=0.05)
