"""Artefacts with linears in FP8: their numbers, their size, and devices without FP8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fisopt
from fisopt import ExportError, LoweringError, OptimizedModule
from fisopt.artefact.manifest import Format
from fisopt.codegen import fp8, quantised_weights
from tests.codegen.test_linears import build, fast_of, inputs, oracle_of

ROUNDED: Any = "fp8-simulated"


@pytest.fixture(scope="module")
def fast() -> OptimizedModule:
    made = fast_of(build(), "model")
    made(**inputs())
    return made


def distance(loaded: Any, fast: OptimizedModule, frames: int = 9) -> float:
    want = oracle_of(fast.original, frames)
    with torch.no_grad():
        got = loaded(**inputs(frames))
    got = got[0] if isinstance(got, tuple) else got
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("format", ["pt2", "onnx", pytest.param("aoti", marks=pytest.mark.slow)])
def test_equal_to_the_plain_formulation(
    format: Format, fast: OptimizedModule, tmp_path: Path
) -> None:
    suffix = ".onnx" if format == "onnx" else ".pt2"
    path = tmp_path / f"fast{suffix}"
    fisopt.export(fast, path, format, dynamic=False, linear=ROUNDED)
    loaded = fisopt.load(path, trust="code")
    assert distance(loaded, fast) <= 1e-5
    assert "simulated fp8 in 1 of 2" in loaded.manifest.variants[0].linears
    assert "1 not: 2 rows, others have 36" in loaded.manifest.variants[0].linears
    assert loaded.manifest.recipe["kernels"] == {"linear": ROUNDED}
    assert loaded.recipe.kernels.linear == ROUNDED


def test_weights_in_fp8_alone_are_in_the_file(fast: OptimizedModule, tmp_path: Path) -> None:
    path = fisopt.export(fast, tmp_path / "fast.pt2", dynamic=False, linear=ROUNDED)
    program = torch.export.load(path)
    assert distance(program.module(), fast) <= 1e-5, "torch alone runs it"
    kept = {str(x.dtype): x.numel() for x in program.state_dict.values() if x.dim() == 2}
    assert kept["torch.float8_e4m3fn"] == fast.original.layers[0].large.weight.numel()
    names = set(program.state_dict)
    assert "layers.0.large.weight" not in names
    assert "layers.0.time.weight" in names


def test_the_precision_of_the_module_unless_told(tmp_path: Path) -> None:
    rounded = fast_of(build())
    rounded(**inputs())
    loaded = fisopt.load(fisopt.export(rounded, tmp_path / "own.pt2", dynamic=False))
    assert distance(loaded, rounded) <= 1e-5
    exact = fisopt.export(rounded, tmp_path / "model.pt2", dynamic=False, linear="model")
    loaded = fisopt.load(exact)
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs()), rounded.original(**inputs()), atol=1e-5)
    assert "kernels" not in loaded.manifest.recipe
    assert loaded.manifest.variants[0].linears == ""


def test_a_text_says_which_and_needs_no_weights(tmp_path: Path) -> None:
    made = fast_of(build().to("meta"), "model")
    held = {name: x.to("meta") for name, x in inputs().items()}
    path = tmp_path / "m.txt"
    fisopt.export(made, path, "text", example_inputs=held, linear=ROUNDED)
    text = path.read_text()
    assert "# linear: simulated fp8 in 1 of 2" in text
    assert "dtype=torch.float8_e4m3fn" in text


def test_sizes_stay_open(fast: OptimizedModule, tmp_path: Path) -> None:
    loaded = fisopt.load(fisopt.export(fast, tmp_path / "open.pt2", linear=ROUNDED))
    assert "frames" in loaded.manifest.open_sizes
    assert distance(loaded, fast) <= 1e-5
    assert distance(loaded, fast, frames=12) <= 1e-5


def test_the_module_that_was_exported_stays(fast: OptimizedModule, tmp_path: Path) -> None:
    before = fast(**inputs())
    fisopt.export(fast, tmp_path / "fast.pt2", dynamic=False, linear=ROUNDED)
    assert torch.equal(fast(**inputs()), before)
    assert not [w for w in fast.original.parameters() if w in quantised_weights._KEPT]


def test_fp8_needs_a_device_that_multiplies_it(
    fast: OptimizedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fast.pt2"
    with pytest.raises(LoweringError, match=r"sm_89 .* newer; the model is on cpu"):
        fisopt.export(fast, path, linear="fp8")
    assert not path.exists()
    with pytest.raises(ExportError, match="ONNX has no product of FP8"):
        fisopt.export(fast, tmp_path / "fast.onnx", "onnx", linear="fp8")
    half = fast_of(build().to(torch.bfloat16), "model")
    half(**{name: x.to(torch.bfloat16) for name, x in inputs().items()})
    monkeypatch.setattr(fp8, "check_device", lambda device: None)
    monkeypatch.setattr("fisopt.codegen.rounded_linears.SMALL", 16)
    fisopt.export(half, path, dynamic=False, linear="fp8")
    program = torch.export.load(path)
    assert any(n.target is torch.ops.aten._scaled_mm.default for n in program.graph.nodes)
    with pytest.raises(ExportError, match=r"its linears multiply in FP8.*linear='model'"):
        fisopt.load(path)


def test_an_unknown_precision(fast: OptimizedModule, tmp_path: Path) -> None:
    wrong: Any = "int4"
    with pytest.raises(fisopt.OptionError, match="int4"):
        fisopt.export(fast, tmp_path / "fast.pt2", linear=wrong)
