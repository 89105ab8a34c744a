"""The GPU benchmarks as far as a machine without a GPU can run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import device
from benchmarks.gpu.device import Rows

SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "gpu"
KEY = ("shape", "implementation")
REFERENCES = {
    "match_tokens": "reference",
    "reduce_attend_restore": "compiled reference",
    "tile_attention": "reference",
}
TODO = [{"shape": s, "implementation": i} for s in ("a", "b") for i in ("ours", "theirs")]


def test_rows_go_on_where_they_stopped(tmp_path: Path) -> None:
    path = tmp_path / "results" / "part.json"
    first = Rows(path, KEY, minutes=1)
    assert first.missing(TODO) == TODO
    for row in TODO[:3]:
        first.add({**row, "ms": 1.5})
    again = Rows(path, KEY, minutes=1)
    assert again.missing(TODO) == TODO[3:]
    again.add({**TODO[3], "ms": 2.5})
    held = json.loads(path.read_text())
    assert [r["ms"] for r in held["rows"]] == [1.5, 1.5, 1.5, 2.5]
    assert held["machine"] == device.machine()


def test_rows_of_other_versions_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.json"
    Rows(path, KEY, minutes=1).add(TODO[0])
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert Rows(path, KEY, minutes=1).missing(TODO) == TODO


def test_what_has_failed_is_measured_again_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    rows = Rows(path, KEY, minutes=1)
    for row, more in zip(TODO, ({"ms": 1.5}, {"failed": "no memory"}), strict=False):
        rows.add(row | more)
    assert Rows(path, KEY, minutes=1).missing(TODO) == TODO[2:]
    again = Rows(path, KEY, minutes=1, again=True)
    assert again.missing(TODO) == TODO[1:]
    again.add(TODO[1] | {"ms": 2.5})
    assert Rows(path, KEY, minutes=1).rows == [TODO[0] | {"ms": 1.5}, TODO[1] | {"ms": 2.5}]


def test_errors_are_one_line() -> None:
    assert device.said(ValueError("one\ntwo")) == "ValueError: one"
    assert device.said(AssertionError()) == "AssertionError: "


def test_a_device_that_answers_no_more_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row after it would fail with its error."""

    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    device.free_memory()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match=r"run again to go on .*illegal memory access"):
        device.free_memory()


def test_a_part_ends_in_time(tmp_path: Path) -> None:
    assert not Rows(tmp_path / "part.json", KEY, minutes=1).over
    assert Rows(tmp_path / "part.json", KEY, minutes=0).over


def test_a_better_row_takes_the_place_of_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    rows = Rows(path, KEY, minutes=1)
    for row in TODO[:2]:
        rows.put({**row, "alone": 2.0})
    rows.put({**TODO[0], "alone": 2.0, "rounds": 3})
    rows.put({**TODO[0], "alone": 4.0})  # made again for others, which a cut-off may end
    assert rows.unfinished(TODO) == TODO[1:]
    held = json.loads(path.read_text())["rows"]
    assert held == [{**TODO[0], "alone": 2.0, "rounds": 3}, {**TODO[1], "alone": 2.0}]


def run(*options: str, script: str = "bench_kernels.py") -> subprocess.CompletedProcess[str]:
    """Run a script as on a machine where fisopt is not installed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPTS / script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run(tmp_path: Path, exhaustive: bool) -> None:
    """Every row of a part in the interpreter, equal to the reference; of all parts in full."""
    pytest.importorskip("triton")
    parts = [*REFERENCES] if exhaustive else [*REFERENCES][:1]
    done = run("--device", "cpu", "--dry-run", "--out", str(tmp_path), "--part", *parts)
    assert done.returncode == 0, done.stderr
    for part in parts:
        rows = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
        assert {"fisopt", REFERENCES[part]} <= {r["implementation"] for r in rows}
        assert not [r for r in rows if "failed" in r]
        assert max(r["error"] for r in rows) < 0.01
        assert done.stdout.count("| tiny |") >= len(rows)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run_of_emitted_kernels(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    options = ("--device", "cpu", "--dry-run", "--out", str(tmp_path))
    done = run(*options, script="bench_emitted.py")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "emitted.json").read_text())["rows"]
    words = {word for row in rows for word in row["kernel"].split("_")}
    assert {"norm", "rotate", "fill", "layout"} <= words
    assert all(row["error"] < 0.02 for row in rows)
    assert sum(row["implementation"] == "reference" for row in rows) < len(rows) / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run_of_forward_calls(tmp_path: Path) -> None:
    """Compared in turns, counted in full depth, and gone on with where they stopped."""
    options = ("--device", "cpu", "--dry-run", "--out", str(tmp_path), "--rounds", "1")
    for configurations in (["stride 2"], ["stride 2", "compile_repeated_blocks"]):
        done = run(*options, "--only", *configurations, script="bench_forward.py")
        assert done.returncode == 0, done.stderr
    rows = {
        r["configuration"]: r for r in json.loads((tmp_path / "forward.json").read_text())["rows"]
    }
    assert [*rows] == ["dense", "stride 2", "compile_repeated_blocks"]
    assert not [r for r in rows.values() if "failed" in r]
    assert rows["dense"]["dense_blocks"] == 4
    sparse = rows["stride 2"]
    assert sparse["dense_blocks"] == 1
    assert 1 < sparse["predicted"] < 2
    assert sparse["roofline"] < rows["dense"]["roofline"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run_of_a_plan(tmp_path: Path) -> None:
    """All steps of a clip together, beside as many dense ones; never counted in full depth."""
    options = ("--device", "cpu", "--dry-run", "--out", str(tmp_path), "--rounds", "1")
    done = run(*options, "--only", plan := "plan for 2x, 4 steps", script="bench_forward.py")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "forward.json").read_text())["rows"]
    dense, planned = rows
    assert planned["configuration"] == plan
    assert planned["steps"] == 4
    assert 1.1 < planned["predicted"] < 1.4
    assert planned["roofline"] < dense["roofline"]
    assert "seconds_all_layers" not in planned


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run_of_everything(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "OUT": str(tmp_path)}
    command = [sys.executable, str(SCRIPTS / "run.py"), "--dry-run", "--minutes", "30"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == [
        *("ceilings.json", "emitted.json", "forward.json", "match_tokens.json"),
        *("reduce_attend_restore.json", "report.md", "tile_attention.json"),
    ]
    page = (tmp_path / "report.md").read_text()
    assert "| failed |" not in page
    assert "| stride 2 + tiles k=1 |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "script",
    [
        "bench_forward.py",
        "bench_kernels.py",
        pytest.param("bench_emitted.py", marks=pytest.mark.slow),
    ],
)
def test_without_a_gpu_it_says_so(script: str) -> None:
    pytest.importorskip("triton")
    done = run(script=script)
    assert done.returncode == 1
    assert "no CUDA device; --device cpu --dry-run" in done.stderr
