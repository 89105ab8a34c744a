from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from click.testing import Result
from rich.console import Console
from torch._inductor import cpp_builder, exc
from typer.testing import CliRunner

import fisopt
from fisopt import models
from fisopt.cli import app, doctor
from fisopt.cli import help as texts
from fisopt.cli.catalog import models_table, short
from fisopt.cli.demo import choose_backend, doubtful, has_compiler
from fisopt.cli.inspection import excerpt, ranges
from fisopt.cli.options import main_file
from fisopt.cli.stages import stages
from fisopt.counted import counted
from fisopt.models import testbed


def fisopt_command(*args: str) -> Result:
    return CliRunner().invoke(app, args, env={"COLUMNS": "140", "TERM": "dumb"})


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", partial(models.build, num_layers=2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained testbed of two layers, saved as a trained one is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    testbed.build_pipeline(testbed.build_transformer(num_layers=2)).save_pretrained(folder)
    return folder


def test_help_teaches() -> None:
    result = fisopt_command("--help")
    assert result.exit_code == 0
    for command in ("demo", "models", "inspect", "codegen", "calibrate", "search", "export"):
        assert f"fisopt {command}" in result.output
        page = fisopt_command(command, "--help")
        assert page.exit_code == 0
        assert f"  fisopt {command}" in page.output, "no example"


def test_help_needs_none_of_the_libraries_that_take_long_to_import() -> None:
    """Of the whole and of every command, in a process that has imported nothing else."""
    code = """
import contextlib, io, sys
from fisopt.cli import app
commands = [[c.name] for c in app.registered_commands] + [[]]
for group in app.registered_groups:
    inner = [[group.name, c.name] for c in group.typer_instance.registered_commands]
    commands += [[group.name], *inner]
assert ["distill", "train"] in commands
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        app([*command, "--help"], standalone_mode=False)
    assert "Usage" in page.getvalue()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"fisopt", "typer"} <= imported
    slow = {"torch", "diffusers", "transformers", "accelerate", "torchmetrics", "matplotlib"}
    slow |= {"numpy", "scipy", "networkx", "safetensors", "imageio", "PIL", "av", "triton"}
    assert not imported & slow


def test_no_arguments_shows_the_help() -> None:
    assert "Usage: fisopt" in fisopt_command().output


def test_version() -> None:
    assert fisopt_command("--version").output == f"fisopt {fisopt.__version__}\n"


@pytest.mark.parametrize(
    ("command", "extra"),
    [("demo", "compare"), ("compare", "compare"), ("compare", "eval"), ("sign", "sign")],
)
def test_help_names_extras_whole(command: str, extra: str) -> None:
    """Rich takes words in brackets for markup."""
    assert f"fisopt[{extra}]" in fisopt_command(command, "--help").output


def test_doctor_shows_whole_paths_and_numbers_that_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "OPTIONAL", {"not-there": "flying: pip install 'fisopt[wings]'"})
    output = fisopt_command("doctor").output
    assert "CPU, 1 thread " in output
    assert "fisopt[wings]" in output
    assert str(folder) in "".join(output.split())


def test_libraries_that_are_imported_later_warn_of_nothing_either() -> None:
    code = (
        "import logging; from fisopt import cli; cli.main(version=False); import diffusers, "
        "transformers; diffusers.logging.get_logger('diffusers.models.modeling_utils')"
        ".warning('kept in float32'); print(diffusers.logging.get_verbosity(), logging.ERROR)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_VERBOSITY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    assert done.stdout.split()[0] == done.stdout.split()[1]
    assert "kept in float32" not in done.stderr


def test_doctor_says_what_is_missing_and_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"torch": "nothing", "not-there": "flying: pip it"})
    monkeypatch.setattr(doctor, "has_compiler", lambda: False)
    result = fisopt_command("doctor")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert torch.__version__ in rows["torch"]
    assert "flying: pip it" in rows["not-there"]
    assert "nothing" not in rows["torch"]
    assert "install g++" in rows["C++"]


def test_shells_complete() -> None:
    env = {**os.environ, "_FISOPT_COMPLETE": "complete_bash", "COMP_WORDS": "fisopt ver"}
    done = subprocess.run(
        [sys.executable, "-m", "fisopt"],
        capture_output=True,
        text=True,
        check=False,
        env={**env, "COMP_CWORD": "1"},
    )
    assert "verify" in done.stdout, done.stderr


def test_stages_are_told_to_a_pipe_and_short_ones_are_not() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with stages("quick", console) as shown:
        shown.update("slow")
        shown._began -= 5
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.fullmatch(r"slow: \d+\.\d s\n", said)


def test_out_is_a_folder_or_the_main_file() -> None:
    assert main_file(Path("out"), "recipe.yaml") == Path("out/recipe.yaml")
    assert main_file(Path("mine/fast.yaml"), "recipe.yaml") == Path("mine/fast.yaml")
    assert main_file(Path("v1.5"), "masks.json") == Path("v1.5/masks.json")


def test_numbers_and_nouns_agree() -> None:
    said = [counted(n, noun) for n, noun in ((1, "step"), (0, "clip"), (2, "branch"))]
    assert said == ["1 step", "0 clips", "2 branches"]


def test_python_m_fisopt() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fisopt", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.stdout == f"fisopt {fisopt.__version__}\n"


def test_models_lists_every_published_model() -> None:
    result = fisopt_command("models")
    assert result.exit_code == 0, result.output
    for name in models.published():
        assert name in result.output
    for name in (*fisopt.PRESETS, "FrameInterleave", "scope: 'block', 'attention'"):
        assert name in result.output
    row = next(line for line in result.output.splitlines() if "wan2.2-a14b" in line)
    for cell in ("81x720x1280", "21x45x80", "75,600", "40", "14.29 B"):
        assert cell in row


def test_narrow_terminals_lose_nothing() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(models_table([]))
    shown = console.file.getvalue()
    assert "\u2026" not in shown
    for name, (_, passes) in fisopt.PRESETS.items():
        assert name in shown
        assert all(word in shown for p in passes for word in short(p).split())


@pytest.mark.parametrize("text", [getattr(texts, n) for n in dir(texts) if n.isupper()])
def test_help_fits_a_narrow_terminal(text: str) -> None:
    """All but the first paragraph, which is wrapped to the terminal, keep their lines."""
    lines = re.sub(r"\\?\[/?cyan\]|\\", "", text).splitlines()[1:]
    assert max(map(len, lines)) <= 78


@pytest.mark.usefixtures("two_layers")
def test_inspect_shows_the_model_and_what_a_pass_makes_of_it() -> None:
    size = ("--height", "64", "--width", "96", "--frames", "33")
    result = fisopt_command(
        "inspect",
        "WAN2.1-1.3B",
        *size,
        "--pass",
        'FrameInterleave(stride=4, blocks=":", steps="1:")',
    )
    assert result.exit_code == 0, result.output
    for line in (
        "Wan2.1-T2V-1.3B, 33 frames of 64 x 96 pixels",
        "9 latent frames x 4 x 6 = 216 video tokens; 2 layers",
        "blocks.0-1",
        "self-attention",
        "predicted speed-up",
        "(dense steps: 0)",
        "2 of 2 blocks sparse",
        "%hidden_states: [1, 16, f9, 8, 12]",
        "fisopt::gather_frames(",
    ):
        assert line in result.output
    assert "fisopt::gather_frames" not in result.output.split("program after the passes")[0]


@pytest.mark.usefixtures("two_layers")
def test_codegen_prints_kernels_and_where_they_are_used() -> None:
    args = ("wan2.1-1.3b", "--height", "128", "--width", "128", "--frames", "17")
    result = fisopt_command("codegen", *args, "--pass", 'FrameInterleave(blocks=":")')
    assert result.exit_code == 0, result.output
    assert "times each)" in result.output, "queries and keys share a kernel"
    assert "moves of elements" in result.output
    names = re.findall(r"^def (\w+)\(", result.output, re.MULTILINE)
    assert len(names) == len(set(names)) == result.output.count("@triton.jit")
    assert any(name.startswith("norm_rotate_") for name in names)
    assert any(name.startswith("fill_") for name in names)


@pytest.mark.usefixtures("two_layers")
def test_inspect_full_text_with_blocks() -> None:
    size = ("--height", "32", "--width", "32", "--frames", "9")
    result = fisopt_command("inspect", "wan2.1-1.3b", *size, "--blocks", "--full")
    assert result.exit_code == 0, result.output
    assert "\nblock_a\n" in result.output
    assert "aten::scaled_dot_product_attention(" in result.output
    assert "more lines" not in result.output
    assert "predicted" not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("wan2.2-a14",), "unknown model 'wan2.2-a14'; the nearest names are wan2.2-a14b"),
        (("wan2.2-a14b", "--pass", "fis-x"), "unknown pass or preset 'fis-x'; did you mean fis-"),
        (("wan2.2-a14b", "--pass", "FrameInterleave(stride=)"), "cannot read pass"),
        (("wan2.2-a14b", "--pass", "FrameInterleave(stride=-1)"), "stride must be"),
        (("wan2.2-a14b", "--height", "719"), "height: got 719, wanted a multiple of 16"),
        (("wan2.2-a14b", "--frames", "80"), "num_frames: got 80"),
    ],
)
@pytest.mark.usefixtures("two_layers")
def test_a_mistake_is_one_message(args: tuple[str, ...], message: str) -> None:
    result = fisopt_command("inspect", *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") or "\nerror: " in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("two_layers")
def test_a_pass_that_refuses_is_one_message() -> None:
    size = ("--height", "32", "--width", "32", "--frames", "9")
    result = fisopt_command(
        "inspect", "wan2.1-1.3b", *size, "--pass", 'FrameInterleave(blocks="9:")'
    )
    assert result.exit_code == 2
    assert "[FrameInterleave]: blocks='9:': 9 is outside" in result.stderr


def test_traceback_on_request() -> None:
    result = fisopt_command("inspect", "nothing-like-it", "--traceback")
    assert isinstance(result.exception, fisopt.InputError)


@pytest.mark.xdist_group("testbed of the demo")
@pytest.mark.usefixtures("one_testbed")
def test_demo_compares_and_writes(weights: Path, tmp_path: Path) -> None:
    prompts = ("red circle moving left fast over waves", "blue square moving up slow over plain")
    result = fisopt_command(
        "demo", "--weights", str(weights), "--out", str(tmp_path), "--backend", "eager",
        "--steps", "2", "--prompt", prompts[0], "--prompt", prompts[1],
        "--pass", "FrameInterleave(stride=3, steps='1:')",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for line in (
        "speed-up predicted from FLOPs",
        "PSNR against the dense clip",
        "neither compiled",
        "FrameInterleave(stride=3, steps='1:'); 2 steps",
    ):
        assert line in result.output
    sheet, rows = iio.imread(tmp_path / "sheet.png"), 3 * 96
    assert sheet.shape[0] > 2 * rows, "dense, optimised and their difference for each prompt"
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"demo.gif", "demo.mp4", "sheet.png", "demo.json", "demo.html"}
    gif = iio.imread(tmp_path / "demo.gif", index=None)
    mp4 = iio.imread(tmp_path / "demo.mp4", plugin="pyav")
    assert len(gif) == 16
    assert len(mp4) % 16 == 0
    assert mp4.shape[1:] == gif.shape[1:]
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["passes"] == ["FrameInterleave(stride=3, steps='1:')"]
    assert [clip["prompt"] for clip in figures["clips"]] == list(prompts)
    assert figures["predicted_speed_up"] > 1
    assert figures["psnr"] < 100


@pytest.mark.slow
def test_demo_on_two_ranks(weights: Path, tmp_path: Path) -> None:
    result = fisopt_command(
        "demo", "--weights", str(weights), "--out", str(tmp_path), "--backend", "eager",
        "--steps", "1", "--prompt", "red circle moving left fast over waves", "--ranks", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["passes"][-1] == "SequenceParallel()"
    assert figures["psnr"] > 0


def test_demo_says_when_its_times_say_little() -> None:
    def timed(dense: tuple[float, ...], optimised: tuple[float, ...]) -> str | None:
        pairs = zip(dense, optimised, strict=True)
        clips = [{"seconds_dense": a, "seconds_optimised": b} for a, b in pairs]
        return doubtful({"clips": clips})

    assert timed((4.5, 4.9, 5.6), (2.6, 2.7, 2.8)) is None
    assert "dense clips took 4.50 to 15.58 s" in str(timed((15.58, 4.5), (2.6, 2.7)))
    assert "optimised clips took 2.60 to 18.55 s" in str(timed((4.5, 4.9), (2.6, 18.55)))


@pytest.mark.xdist_group("testbed of the demo")
@pytest.mark.usefixtures("one_testbed")
def test_demo_without_passes_is_exact(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    result = fisopt_command(
        "demo", "--weights", str(weights), "--out", str(tmp_path), "--backend", "eager",
        "--steps", "1", "--prompt", "red circle moving left fast over waves",
        "--pass", "FrameInterleave(stride=1)",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["predicted_speed_up"] == 1
    assert figures["ssim"] == pytest.approx(1)
    assert figures["clips"][0]["psnr"] is None, "infinite"
    assert "pip install 'fisopt[compare]'" in result.output
    assert not (tmp_path / "demo.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--prompt", "red dog moving left fast over waves"), "got 'dog' as shape"),
        (("--ranks", "2", "--prompt", "red dog moving left fast over waves"), "got 'dog' as shape"),
        (("--backend", "inducter"), "did you mean inductor"),
        (("--weights", "nowhere"), "no model_index.json in nowhere"),
    ],
)
def test_demo_mistakes(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = fisopt_command("demo", *args, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists(), "nothing half-done"


def test_without_a_compiler_neither_model_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_compiler()
    assert choose_backend(None) == "eager"
    assert choose_backend("inductor") == "inductor", "a choice is not overruled"


def test_paths_of_blocks_are_shortened() -> None:
    assert ranges(["blocks.0", "blocks.1", "blocks.2", "blocks.5", "head"]) == (
        "blocks.0-2, blocks.5, head"
    )


def test_an_excerpt_shows_inputs_and_the_first_block() -> None:
    lines = ["program", "  %x: [1]", *(f"  %{i}: [1] = aten::neg(%x)" for i in range(40))]
    lines += [f"  %{i}: [1] = block_a(%x)" for i in range(40, 80)]
    shown = excerpt(lines)
    assert shown[:3] == ["program", "  %x: [1]", "  ... 38 lines before the first block"]
    assert "block_a" in shown[5]
    assert "block_a" not in shown[4]
