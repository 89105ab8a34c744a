"""Presets: what loses the clip says so, and figures are of the steps that are asked for."""

from __future__ import annotations

import warnings

import pytest

import fisopt
from fisopt.passes import figures as module
from fisopt.passes.figures import Figure, figure_of, figures
from fisopt.passes.presets import PAPER, PRESETS, RENAMED, resolve


def test_what_loses_the_clip_has_paper_in_its_name() -> None:
    for name, known in figures().items():
        assert name in PRESETS
        assert PAPER in name or all(figure.right >= 40 for figure in known)
    with pytest.warns(UserWarning, match="no clip shows its prompt"):
        assert resolve(["fis-paper-b"]) == PRESETS["fis-paper-b"][1]


def test_figures_are_of_about_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = Figure(4, 2.0, 25.0, 90.0, 24), Figure(25, 2.0, 20.0, 80.0, 24)
    monkeypatch.setattr(module, "figures", lambda: {"fis-fast": (few, many)})
    assert figure_of("fis-fast", 6) == few
    assert figure_of("fis-fast", 50) == many
    assert figure_of("fis-a", 4) is None
    assert str(few) == "25.0 dB at 2.00x, 4 steps"


def test_an_older_name_is_known() -> None:
    for old, name in RENAMED.items():
        assert old not in PRESETS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert resolve([old]) == PRESETS[name][1]
    assert all(isinstance(p, fisopt.Pass) for _, passes in PRESETS.values() for p in passes)
