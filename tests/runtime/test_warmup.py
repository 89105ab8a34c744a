"""Warming up: which variants are compiled, and what the bar counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import fisopt
from fisopt import FrameInterleave, Program, ScheduleError
from fisopt.runtime import progress
from tests.zoo import zoo

CASE = zoo()["wan"]


def model_of(
    wan: Program, monkeypatch: pytest.MonkeyPatch, backend: Any = "inductor", **options: Any
) -> Any:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    passes = [FrameInterleave(blocks=":", **options)]
    return fisopt.optimize(wan, passes=passes, backend=backend)


def test_a_generation_is_compiled_ahead_under_a_bar(
    wan: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(wan, monkeypatch, steps="1:-1")
    inputs = CASE.inputs(5, 3, 4, batch=2)
    bars: list[Any] = []
    real = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **k: bars.append(real(**k)) or bars[-1])
    torch._dynamo.reset()
    counters.clear()
    model.warmup(inputs, num_steps=3)
    assert len(model.report.variants) == 2, "dense, sparse and dense again"
    stages = sum(variant.stages for variant in model.report.variants)
    assert counters["stats"]["unique_graphs"] == stages
    (bar,) = bars
    assert bar.n == bar.total == stages
    assert "compiling" in capsys.readouterr().err
    with torch._dynamo.config.patch(error_on_recompile=True), model.generation(num_steps=3):
        for time in (900.0, 600.0, 300.0):
            model(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})
    assert counters["stats"]["unique_graphs"] == stages, "something was left to compile"


def test_quiet_and_eager(
    wan: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(wan, monkeypatch, backend="eager")
    model.warmup(CASE.inputs(5, 3, 4, batch=2), progress=False)
    assert capsys.readouterr().err == ""
    assert len(model.report.variants) == 1


def test_no_steps_are_refused(wan: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScheduleError, match="num_steps must be at least 1, got 0"):
        model_of(wan, monkeypatch).warmup(CASE.inputs(5, 3, 4, batch=2), num_steps=0)
