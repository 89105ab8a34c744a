"""Every table of README and docs is what stands in benchmarks/results, and can be made again."""

from __future__ import annotations

import json
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


def test_figures_of_presets_are_those_of_the_results(report: ModuleType) -> None:
    """Where this fails: make results."""
    peers = report.load("testbed_peers")
    wanted = report.preset_figures(peers) if peers is not None else {}
    assert json.loads(report.FIGURES.read_text()) == wanted
    row = {"name": "preset few", "steps": 4, "flops_ratio": 2.0, "psnr": [20.0, 22.0]}
    other = {"name": "dense", "steps": 4, "flops_ratio": 1.0, "right": [1.0]}
    made = report.preset_figures({"rows": [{**row, "right": [1.0, 0.0]}, other]})
    figure = {"steps": 4, "speed_up": 2.0, "psnr": 21.0, "right": 50.0, "clips": 2}
    assert made == {"few": [figure]}


def test_prior_prices_are_those_of_the_results(report: ModuleType) -> None:
    """Where this fails: make results."""
    held = report.load("prior")
    assert json.loads(report.PRIOR.read_text()) == report.prior_prices(held)
    assert held["options"].keys() == held["first"].keys()
    assert all(price > 0 for price in held["options"].values())


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
    assert table[0] == "| 4 steps | speed-up | PSNR dB | all three % | minus dense |"
    assert table[2] == "| fast | 2.00x | 22.0 (17.0 to 27.0) | 33 | -33 (-177 to +110) |"
    assert table[3] == "| dense | 1.00x |  | 67 |  |"
