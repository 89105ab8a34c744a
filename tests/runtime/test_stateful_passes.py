"""Passes with state or measurements in one list: each keeps its own, every fallback is a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import ExportError, ModelSpec, Pass, PassError, Rewriter, ScheduleError, Step
from tests import plain_dit
from tests.conftest import plain_captured

FORM, GRID = plain_dit.FORMS["fused"], (5, 2, 3)
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda kwargs: GRID)
aten = torch.ops.aten


@dataclass(frozen=True)
class Hold(Pass):
    """What the model returned up to some steps ago is added to what it returns."""

    period: int = 2
    state: str = "store"
    stepwise: bool = True

    def at(self, step: Step) -> Pass:
        return replace(self, state="load" if step.index % self.period else "store")

    def afresh(self) -> Pass:
        return replace(self, state="store")

    def run(self, rewriter: Rewriter) -> None:
        result = next(iter(reversed(rewriter.graph.nodes))).all_input_nodes[0]
        value = result.meta["val"]
        with rewriter.after(result):
            if self.state == "load":
                held = rewriter.load("result", value.shape, value.dtype, value.device)
                rewriter.replace_uses(result, rewriter.call(aten.add.Tensor, result, held))
                return
            rewriter.measure("mean", rewriter.call(aten.mean.default, result))
            rewriter.store("result", result)


def optimized(*passes: Pass) -> fisopt.OptimizedModule:
    result: fisopt.OptimizedModule = fisopt.optimize(
        plain_captured(FORM)[1], list(passes), backend="eager"
    )
    return result


def call(seed: int) -> dict[str, Any]:
    inputs = plain_dit.inputs(FORM, *GRID)
    return {**inputs, "video": torch.randn(inputs["video"].shape)} if seed else inputs


def generate(model: Any, steps: int, first: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A clip of one branch; the optimised model's results and those of the original."""
    for step in range(first, steps):
        inputs = call(step)
        with model.cache_context("cond", step_index=step, num_inference_steps=steps):
            got = model(**inputs)["video"]
        yield step, got, plain_captured(FORM)[0](**inputs)["video"]


def held(periods: tuple[int, ...], clip: Iterator[tuple[int, Tensor, Tensor]], first: int) -> None:
    """Check a clip against a memory for each pass; all that store keep what is returned."""
    memory: list[Tensor] = [torch.empty(0)] * len(periods)
    for step, got, now in clip:
        loads = [step % period > 0 and step > first for period in periods]
        want = now + sum(m for m, load in zip(memory, loads, strict=True) if load)
        torch.testing.assert_close(got, want)
        memory = [m if load else want for m, load in zip(memory, loads, strict=True)]


@pytest.mark.parametrize("periods", [(2, 3), (3, 2)])
def test_two_passes_of_one_class_keep_their_state(periods: tuple[int, ...]) -> None:
    model = optimized(*map(Hold, periods))
    for first in (0, 1):
        held(periods, generate(model, 7, first), first)
    assert dict(model.report.notes) == {
        f"{name} ran afresh at step 1, branch 'cond'": 1 for name in ("Hold", "Hold 2")
    }
    program = model.program(call(0), Step(0))
    assert program.stores == ("Hold/result", "Hold 2/result")
    assert model.program(call(0), Step(3)).loads == (f"Hold{' 2' * (periods[0] == 3)}/result",)


def test_an_artefact_keeps_the_state_of_both(tmp_path: Path) -> None:
    model = optimized(Hold(2), Hold(3))
    path = fisopt.export(model, tmp_path / "held", example_inputs=call(0), steps=4, dynamic=False)
    loaded = fisopt.load(path)
    for first in (0, 1):
        held((2, 3), generate(loaded, 4, first), first)
    assert dict(loaded.notes) == {
        f"{name} ran afresh at step 1, branch 'cond'": 1 for name in ("Hold", "Hold 2")
    }


@dataclass(frozen=True)
class Decide(Hold):
    """Asks for a measurement from some step on; its own by default."""

    name: str = "Decide"
    asks: str = "mean"
    since: int = 1

    def at(self, step: Step) -> Pass | None:
        SEEN.append(step.measured.get(self.asks) if step.index >= self.since else None)
        return replace(self, state="store")


SEEN: list[float | None] = []


@pytest.mark.parametrize("passes", [[Decide()], [Hold(1), Decide(asks="Hold/mean")]])
def test_a_pass_sees_what_was_measured_last(passes: list[Pass]) -> None:
    SEEN.clear()
    means = [float(now.mean()) for _, _, now in generate(optimized(*passes), 4)]
    assert SEEN[0] is None
    assert SEEN[1:] == pytest.approx(means[:-1])


def test_what_nobody_measures_is_an_error() -> None:
    """It may be asked for in two steps, which may be those that come before it can be measured."""
    SEEN.clear()
    with pytest.raises(
        ScheduleError,
        match=r"Decide reads measurement 'maen' at step 2, branch 'cond', and no pass makes one of "
        r"that name .made so far: Decide/mean.; .*rewriter\.measure\('maen', node\)",
    ):
        list(generate(optimized(Decide(asks="maen")), 4))
    assert SEEN == [None, None]


@dataclass(frozen=True)
class Complex(Hold):
    def run(self, rewriter: Rewriter) -> None:
        result = next(iter(reversed(rewriter.graph.nodes))).all_input_nodes[0]
        with rewriter.after(result):
            made = rewriter.call(aten._to_copy.default, result, dtype=torch.complex64)
        rewriter.measure("phase", made)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(PassError, match="Complex/phase is complex; measure real numbers"):
        fisopt.PassManager([Complex()]).run(plain_captured(FORM)[1])
    with pytest.raises(PassError, match="Decide/mean is measured twice"):
        fisopt.PassManager([Decide()] * 2, names=["Decide"] * 2).run(plain_captured(FORM)[1])


def test_an_artefact_decides_by_no_values(tmp_path: Path) -> None:
    model = optimized(Hold(2), Decide())
    with pytest.raises(ExportError, match=r"Decide decides by its measurements .*fixed schedule"):
        fisopt.export(model, tmp_path / "x", example_inputs=call(0), steps=4, dynamic=False)
    with pytest.raises(ScheduleError, match="known only in a running generation"):
        model.warmup(call(0), num_steps=4)
    assert not list(tmp_path.iterdir())
