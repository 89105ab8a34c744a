"""Random programs: every call equals the oracle or is refused by name, the model is untouched."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from fisopt import FrameInterleave
from tests.fuzz.form import CHOICES, draw, form, possible
from tests.fuzz.model import Shape, build, inputs, sample
from tests.fuzz.oracle import Oracle
from tests.fuzz.program import Case, Outcome, case, check
from tests.fuzz.shrink import smallest

SEEDS = (1, 2, 3, 4, 5, 7, 8, 9, 12)
"""Five programs each, those that are captured quickly; `make fuzz` runs more."""
SHAPE = Shape(5, 2, 2, 1, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_call_is_right_or_refused(seed: int) -> None:
    outcomes = check(case(seed))
    faults = [o for o in outcomes if o.kind not in ("equal", "refused")]
    assert not faults, f"python benchmarks/fuzz.py --show {seed}"


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that computes other frames than it says."""
    monkeypatch.setattr(
        "fisopt.passes.interleaving.form.anchor_frames",
        lambda frames, stride, residue: (0, frames - 1),
    )
    passes = (FrameInterleave(stride=2, blocks=":"),)
    (outcome,) = check(Case(0, form(), (SHAPE,), (passes,)))
    assert outcome.kind == "wrong"


def test_a_changed_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def optimize(model: Any, *args: Any, **kwargs: Any) -> Any:
        model.blocks[0].norms[0].weight += 1
        raise ValueError("not of fisopt")

    monkeypatch.setattr("fisopt.optimize", optimize)
    outcomes = check(Case(0, form(), (SHAPE,), ((),)))
    assert [o.kind for o in outcomes] == ["raw error", "touched"]


@pytest.mark.parametrize("seed", range(40))
def test_the_oracle_without_passes_is_the_model(seed: int) -> None:
    drawn = case(seed)
    model = build(drawn.form, seed, torch.float64)
    given = inputs(drawn.form, drawn.shapes[0], seed, torch.float64)
    with torch.no_grad():
        want = sample(model(**given))
    got = Oracle(model, drawn.shapes[0], ())(given)
    assert want.std() > 0.1
    assert torch.equal(got, want)


def test_the_smallest_case_that_fails() -> None:
    """Everything becomes plain but what the failure needs."""

    def check(tried: Case) -> list[Outcome]:
        bad = tried.form.rotary == "pairs" and any(tried.passes)
        return [Outcome("wrong" if bad else "equal", "", 0, 0)]

    failing = next(c for c in map(case, range(200)) if check(c)[0].kind == "wrong")
    found, outcomes = smallest(failing, check(failing), ("wrong",), check)
    assert found.form == form(rotary="pairs")
    assert (len(found.passes), len(found.passes[0]), len(found.shapes)) == (1, 1, 1)
    assert [o.kind for o in outcomes] == ["wrong"]


def test_forms() -> None:
    """A seed says everything; every choice is drawn, and what is drawn is possible."""
    source = random.Random(0)
    forms = [draw(source) for _ in range(400)]
    assert case(7) == case(7)
    assert all(possible(f) == f for f in forms)
    for name, options in CHOICES.items():
        assert {getattr(f, name) for f in forms} == set(options), name
