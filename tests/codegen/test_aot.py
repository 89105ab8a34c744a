"""Kernels compiled for a GPU that is not here, in a process that does not interpret them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fisopt.errors import LoweringError

pytest.importorskip("triton")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_aot.py"


def compiled(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The rows of the benchmark, which itself fails where something spills or is too large."""
    out = tmp_path / "aot.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(BENCHMARK), "--out", str(out), *options]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


def test_defaults_on_sm_90(tmp_path: Path) -> None:
    """One config a kernel: tensor cores by wgmma, loads that run ahead, no spills, fits."""
    rows = compiled(tmp_path, "--default", "--arch", "90", "--shape-class", "d128, bfloat16")
    assert {r["kernel"] for r in rows} == {
        "tile_attention",
        "match_tokens",
        "reduce_attend_restore",
    }
    for row in rows:
        assert "refused" not in row, row
        assert row["spilled"] == 0, row
        assert 0 < row["shared"] <= 227 << 10, row
        assert row["tensor_core"]["HGMMA"] > 0, row
        assert sum(row["async_copies"].values()) > 0, row
        assert 32 < row["registers"] <= 255, row


def test_every_kernel_config_and_architecture(tmp_path: Path, exhaustive: bool) -> None:
    if not exhaustive:
        pytest.skip("half an hour: only with --exhaustive")
    rows = compiled(tmp_path)
    assert {r["arch"] for r in rows} == {"sm_80", "sm_90", "sm_100"}
    assert {r["default"] for r in rows} == {True, False}


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted on a GPU")
def test_interpreted_kernels_cannot_be_compiled() -> None:
    from fisopt.codegen.aot import compile_ahead
    from fisopt.codegen.aot_cases import cases

    case = next(cases())
    with pytest.raises(LoweringError, match="interpreted; compile in a process without TRITON_INT"):
        compile_ahead(case.prepare(case.configs[0]), 90)
