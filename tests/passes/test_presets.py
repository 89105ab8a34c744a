"""Presets: their figures are those that were measured, and what loses the clip says so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import fisopt
from fisopt.passes.figures import FIGURES
from fisopt.passes.presets import PAPER, PRESETS, RENAMED, resolve

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_figures_are_those_of_the_results() -> None:
    rows = {r["target"]: r for r in json.loads((RESULTS / "tune.json").read_text())["rows"]}
    for name, figure in FIGURES.items():
        assert name in PRESETS
        if figure.steps == 4:
            row = rows[name]
            got = (row["speed_up"], row["psnr"], row["right"], row["clips"])
            assert got == pytest.approx(
                (figure.speed_up, figure.psnr, figure.right, figure.clips), abs=0.006
            )


def test_what_loses_the_clip_has_paper_in_its_name() -> None:
    for name, figure in FIGURES.items():
        assert PAPER in name or figure.right >= 50
    with pytest.warns(UserWarning, match="no clip shows its prompt"):
        assert resolve(["fis-paper-b"]) == PRESETS["fis-paper-b"][1]


def test_an_older_name_is_known() -> None:
    for old, name in RENAMED.items():
        assert old not in PRESETS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert resolve([old]) == PRESETS[name][1]
    assert all(isinstance(p, fisopt.Pass) for _, passes in PRESETS.values() for p in passes)
