"""Targets of a search, from text."""

from __future__ import annotations

import math

import pytest

from fisopt import OptionError
from fisopt.errors import FisoptError
from fisopt.tuning.goal import Goal, psnr_of


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2x", "speed", 2.0),
        (" 1.5X ", "speed", 1.5),
        ("350 ms", "ms", 350.0),
        ("error<=0.1", "error", 0.1),
        ("psnr >= 28", "psnr", 28.0),
    ],
)
def test_forms(text: str, kind: str, value: float) -> None:
    goal = Goal.of(text)
    assert (goal.kind, goal.value) == (kind, value)
    assert Goal.of(str(goal)) == goal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.9x", "slower than dense; wanted 1x or more"),
        ("2 s", "wanted '2x'"),
        ("x", "wanted '2x'"),
        ("error<=1.5", r"wanted an error in \(0, 1\)"),
        ("error>=0.5", "wanted '2x'"),
        ("0ms", "wanted a number above 0"),
        (2, "target: got 2"),
    ],
)
def test_refusals(text: object, message: str) -> None:
    with pytest.raises(FisoptError, match=message):
        Goal.of(text)


def test_decibels_and_errors_are_one_scale() -> None:
    peak = 3.0
    assert psnr_of(Goal.of("psnr>=28").most_error(peak), peak) == pytest.approx(28)
    assert Goal.of("error<=0.2").most_error(peak) == 0.2
    assert psnr_of(0.0, peak) == 100
    assert psnr_of(peak, peak) == pytest.approx(20 * math.log10(1))
    with pytest.raises(OptionError):
        Goal.of("")
