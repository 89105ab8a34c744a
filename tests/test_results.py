"""Every table of README and docs is what stands in benchmarks/results, and can be made again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import report as module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def test_pages_hold_what_was_measured(report: ModuleType) -> None:
    """Where this fails: make results."""
    for page, sections in report.PAGES.items():
        assert report.filled(ROOT / page, sections) == (ROOT / page).read_text(), page


def test_peers_are_told_with_their_intervals(report: ModuleType) -> None:
    common = {"kind": "ours", "steps": 4}
    rows = [
        {**common, "name": "dense", "flops_ratio": 1.0, "right": [1.0, 1.0, 0.0]},
        {
            **common,
            "name": "fast",
            "flops_ratio": 2.0,
            "right": [1.0, 0.0, 0.0],
            "psnr": [20.0, 22.0, 24.0],
        },
    ]
    table = report.tables.peers_table(rows, 4, ("psnr",)).splitlines()
    assert table[0] == "| 4 steps | speed-up | PSNR dB | all three % | less dense |"
    assert table[2] == "| fast | 2.00x | 22.0 (17.0 to 27.0) | 33 | -33 (-177 to +110) |"
    assert table[3] == "| dense | 1.00x |  | 67 |  |"
