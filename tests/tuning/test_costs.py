"""Costs of stages: each is timed once, blocks add up to the whole, and a device is asked for."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
import torch

import fisopt
from fisopt import InputError, OptionError, StepCache
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.rewrite.pass_manager import PassManager
from fisopt.tuning import component as component_module
from fisopt.tuning import costs as costs_module
from fisopt.tuning.component import Component
from fisopt.tuning.costs import FlopCosts, StageTimes, costs_of
from fisopt.tuning.option import Option
from fisopt.tuning.space import Plan, Space
from tests.conftest import captured
from tests.zoo import zoo

pytestmark = [pytest.mark.xdist_group("wan"), pytest.mark.usefixtures("captured_once")]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A stage takes the time of its number in order, so that nothing hangs on a clock."""
    seen: list[torch.device] = []

    def timed(run: object, device: torch.device, **_: object) -> float:
        run()  # type: ignore[operator]
        seen.append(device)
        return float(len(seen))

    monkeypatch.setattr(costs_module, "fastest", timed)
    return seen


def test_flops_are_the_cost_models() -> None:
    program = captured("wan")
    costs = costs_of("flops", {})
    assert isinstance(costs, FlopCosts)
    assert costs.whole(program) == fisopt.program_cost(program).work
    assert 0 < sum(costs.blocks(program)) < costs.whole(program)


def test_a_stage_is_timed_once(counted: list[torch.device]) -> None:
    program, known = captured("wan"), dict[str, float]()
    costs = StageTimes("eager", known)
    blocks = costs.blocks(program)
    assert len(blocks) == len(program.blocks)
    assert len(set(blocks)) == 1  # equal blocks are one stage
    assert costs.whole(program) > sum(blocks)
    stages = len(counted)
    assert len(known) == stages < len(program.blocks) + 2
    sparse = PassManager([fisopt.FrameInterleave(stride=2, blocks="1:")]).run(program)
    first, *others = costs.blocks(sparse)
    assert first == blocks[0]
    assert set(others).isdisjoint(blocks)
    StageTimes("eager", known).whole(sparse)
    StageTimes("eager", known).whole(program)
    assert len(counted) == len(known)
    assert {device.type for device in counted} == {"cpu"}


@pytest.mark.usefixtures("counted")
def test_a_plan_takes_the_dense_time_less_what_its_options_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stage times that fall by option: dense blocks cost what they cost."""
    option = Option("self_attention", 2)
    monkeypatch.setattr(component_module, "options_of", lambda part, _: (option,))

    class Halved(StageTimes):
        def blocks(self, program: fisopt.Program) -> list[float]:
            dense = program is captured("wan")
            return [(2.0 if dense else 1.5) for _ in program.blocks]

        def whole(self, program: fisopt.Program) -> float:
            return 10.0 if program.blocks else 1.0

    made = Component("transformer", captured("wan"), Counter({0: 2, 1: 2}), Halved("eager", {}))
    space = Space([made], 2, 99)
    place = next(p for p in space.options if p.part == "self_attention" and p.steps == (1,))
    assert space.total == 40
    assert space.cost(Plan({place: option})) == 40 - 2 * 0.5
    (run,) = space.reuses
    assert space.cost(Plan({}, (run,))) == 40 - 2 * 9.0
    assert space.cost(Plan({place: option}, (run,))) == space.cost(Plan({}, (run,)))


@pytest.mark.usefixtures("counted")
def test_a_preset_takes_the_times_of_the_stages_that_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of its own Programs, step by step; the first step of a cache computes all blocks."""
    monkeypatch.setattr(component_module, "options_of", lambda *_: ())
    known: dict[str, float] = {}
    calls, costs = Counter(dict.fromkeys(range(4), 2)), StageTimes("eager", known)
    space = Space([Component("transformer", captured("wan"), calls, costs)], 4, 1)
    cache = StepCache(steps="1", order=1, blocks=":")
    steps = [cache.at(fisopt.Step(i, 4)) for i in range(4)]
    want = [2 * costs.whole(PassManager([step]).run(captured("wan"))) for step in steps]
    assert len(set(want)) == 3  # the first, one that reuses, those that compute later
    before = len(known)
    assert space.cost(Plan(preset="many-faithful")) == pytest.approx(sum(want))
    assert len(known) == before


def test_nothing_is_timed_without_values() -> None:
    case = zoo()["wan"]
    inputs = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in case.inputs(3, 4, 4).items()}
    program = fisopt.capture(deepcopy(case.model).to("meta"), inputs)
    with pytest.raises(InputError, match="nothing can be timed; pass costs='flops'"):
        StageTimes("eager", {}).whole(program)


def test_refusals() -> None:
    given = {"prompts": ["a", "b"], "steps": 2}
    with pytest.raises(OptionError, match="costs must be one of"):
        fisopt.tune(object(), "2x", costs="seconds", **given)
    with pytest.raises(OptionError, match="target 350ms is a time and costs='flops' has none"):
        fisopt.tune(object(), "350ms", costs="flops", **given)


def test_stages_that_round_are_timed_so_and_dense_as_it_is(counted: list[torch.device]) -> None:
    """FP8 stages run on weights in FP8; the dense reference is the model's own precision."""
    program, known = captured("wan"), dict[str, float]()
    rounding = costs_of("eager", known, KernelOptions("fp8-simulated"))
    rounded = rounding.whole(program)
    assert len(counted) == len(known)
    plain = StageTimes("eager", {}).whole(program)
    assert rounding.unrounded.whole(program) > plain  # counted on: no stage of the two is one
    stages = len(known)
    assert rounding.whole(program) == rounded
    assert len(known) == stages
    flops = FlopCosts()
    assert flops.unrounded is flops
