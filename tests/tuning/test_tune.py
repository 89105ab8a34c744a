"""Tuning: trials equal plain runs, plans are the best ones, and a recipe gives its numbers again."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fisopt
from fisopt import InputError, OptionError, PassManager, StepCache
from fisopt.cli.schedule import plan_steps
from fisopt.errors import FisoptError
from fisopt.rewrite.variants import Variants
from fisopt.tuning import component as component_module
from fisopt.tuning import contenders, pricing, search
from fisopt.tuning import space as space_module
from fisopt.tuning.component import Component
from fisopt.tuning.option import Option, options_of
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.prior import prior
from fisopt.tuning.recorder import Recorder
from fisopt.tuning.reuse import Reuse, even_runs
from fisopt.tuning.space import Place, Plan, Space
from fisopt.tuning.trial import Trials
from fisopt.tuning.tune import rehearse_program
from tests.conftest import captured
from tests.denoiser import Denoiser

pytestmark = [pytest.mark.xdist_group("wan"), pytest.mark.usefixtures("captured_once")]
PROMPTS = ["a", "bb"]
BLOCK = {"self_attention", "cross_attention", "feed_forward"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that is searched in a moment."""
    kept = {
        "self_attention": (Option("self_attention", 2), Option("self_attention", 2, "anchors")),
        "feed_forward": (Option("feed_forward", 2),),
    }
    monkeypatch.setattr(component_module, "options_of", lambda part, _: kept.get(part, ()))
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr(search, "REPAIRS", 2)


def latents(pipeline: Any, index: int, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        made: torch.Tensor = pipeline(
            PROMPTS[index], num_inference_steps=steps, generator=generator
        )[0]
    return made


@cache
def component() -> Component:
    return Component("transformer", captured("wan"), Counter())


def space(calls: dict[int, int], bands: int = 1) -> Space:
    mine = copy(component())
    mine.calls = Counter(calls)
    return Space([mine], len(calls), bands)


def test_a_trial_is_a_plain_run_and_late_changes_run_late_steps_alone() -> None:
    pipeline = Denoiser()
    model = pipeline.transformer
    trials = Trials(Recorder(pipeline, PROMPTS, steps=3))
    ran: list[int] = []
    with trials.ready():
        module = trials.modules["transformer"]
        dense = trials.dense(1)
        passes = [fisopt.FrameInterleave(stride=2, rotate="steps", steps="1:")]
        hook = fisopt.OptimizedModule._run

        def counted(self: Any, *args: Any) -> Any:
            ran.append(1)
            return hook(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fisopt.OptimizedModule, "_run", counted)
            error = trials.error(1, {"transformer": passes})
        assert [line.step for line in dense.lines] == [0, 1, 2]
        assert len(ran) == 2
        assert trials.error(1, {}) == 0
        assert module.passes == ()
    assert pipeline.transformer is model
    want = latents(pipeline, 1, 3)
    torch.testing.assert_close(dense.latents[0], want, rtol=1e-5, atol=1e-5)
    fisopt.optimize(pipeline, passes, backend="eager")
    got = latents(pipeline, 1, 3)
    assert error == pytest.approx(
        float((got - want).square().sum() / want.square().sum()), rel=1e-3
    )
    assert error > 1e-6


def test_what_is_saved_is_what_programs_save() -> None:
    made = space({0: 2, 1: 2}, bands=3)
    assert {place.part for place in made.options} == BLOCK
    assert made.total == pytest.approx(4 * fisopt.program_cost(captured("wan")).work)
    options = {p: o[0] for p, o in made.options.items() if p.steps == (1,)}
    plan = Plan(options)
    saved = sum(made.saves(p, o) for p, o in options.items())
    assert made.total - made.cost(plan) == pytest.approx(saved, rel=0.05)
    (frames,) = made.passes(plan)["transformer"]
    assert isinstance(frames, fisopt.FrameInterleave)
    assert (frames.steps, frames.rotate, frames.self_attention) == ("1", "steps", 2)
    reuse = Reuse("transformer", (1,))
    assert reuse in made.reuses
    passes = made.passes(Plan({}, (reuse,)))["transformer"]
    assert passes == [fisopt.StepCache(steps=[1], blocks=":")]


def test_a_plan_says_each_block() -> None:
    made = space({0: 1}, bands=3)
    places = [p for p in made.options if p.part == "self_attention"]
    one, two = places[0], places[2]
    picked = Plan({one: Option("self_attention", 2, "anchors"), two: Option("self_attention", 4)})
    (frames,) = made.passes(picked)["transformer"]
    strides = [1, 1, 1, 1]
    strides[one.blocks[0]], strides[two.blocks[0]] = 2, 4
    assert isinstance(frames, fisopt.FrameInterleave)
    assert frames.self_attention == tuple(strides)
    assert isinstance(frames.kv, tuple)
    assert frames.kv[one.blocks[0]] == "anchors"
    assert (frames.cross_attention, frames.feed_forward) == (1, 1)


def brute_force(made: Space, options: list[Place]) -> list[Plan]:
    """Every plan of a space that is small enough to write down."""
    (steps,) = (sorted(c.calls) for c in made.components.values())
    plans = []
    for reused in itertools.product([False, True], repeat=len(steps) - 1):
        flags = [False, *reused]
        runs, start = [], 0
        for step in [*steps, None]:
            if step is None or not flags[step]:
                runs += [] if step is not None and step == start else [tuple(steps[start:step])]
                start = len(steps) if step is None else step + 1
        chosen = tuple(r for r in made.reuses if r.steps in runs)
        if sum(len(r.steps) for r in chosen) != sum(flags):
            continue  # a run that is longer than any that is offered
        free = [p for p in options if not all(flags[s] for s in p.steps)]
        for picks in itertools.product(*[[None, *made.options[p]] for p in free]):
            kept = {p: o for p, o in zip(free, picks, strict=True) if o is not None}
            plans.append(Plan(kept, chosen))
    return plans


@pytest.mark.parametrize(("steps", "group"), [(2, 1), (5, 2)])
def test_the_plan_is_the_best_one(steps: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every plan of a space that is small enough to write down."""
    monkeypatch.setattr(component_module, "GROUPS", 0)
    monkeypatch.setattr(component_module, "MANY", steps // group)
    made = space(dict.fromkeys(range(steps), 1))
    generator = torch.Generator().manual_seed(0)
    kept = [p for p in made.options if p.part == "self_attention"]
    made.options = {p: made.options[p][:2] for p in kept}
    changes: list[Any] = [(p, o) for p, options in made.options.items() for o in options]
    prices = {c: float(torch.rand((), generator=generator)) for c in (*changes, *made.reuses)}
    knapsack = Knapsack(made, prices)
    plans = brute_force(made, kept)
    assert len({len(p.reuses) for p in plans}) > 1
    for saved in (0.05, 0.2, 0.3, 0.5, 0.9):
        fit = [p for p in plans if knapsack.saving(p) >= saved]
        found = knapsack.least_error(saved)
        if not fit:
            assert found is None
            continue
        assert found is not None
        least = min(map(knapsack.predicted, fit))
        assert knapsack.predicted(found) == pytest.approx(least, rel=2e-3)
    bound = 0.8
    most = max(knapsack.saving(p) for p in plans if knapsack.predicted(p) <= bound)
    found = knapsack.most_saved(bound)
    assert found is not None
    assert knapsack.saving(found) == pytest.approx(most, rel=2e-3)
    assert knapsack.most() == pytest.approx(max(map(knapsack.saving, plans)))
    given = Knapsack(made, prices, runs=plans[-1].reuses)
    same = [p for p in plans if set(p.reuses) == set(plans[-1].reuses)]
    assert plans[-1].reuses
    assert len(same) > 1
    found = given.least_error(saved := max(map(given.saving, same)) - 0.02)
    assert found is not None
    assert set(found.reuses) == set(plans[-1].reuses)
    least = min(given.predicted(p) for p in same if given.saving(p) >= saved)
    assert given.predicted(found) == pytest.approx(least, rel=2e-3)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("target", ["1.3x", "error<=0.1"])
def test_even_schedules_are_tried_whole(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the prices of single runs say that others are better."""
    monkeypatch.setattr(space_module, "FEW", 3)
    best = even_runs("transformer", range(6), 2, 2)
    price = {"transformer steps 5-5 reuse": 1e-4}

    def error(_: Any, plan: Plan, clip: int) -> float:
        if plan.preset:
            return 0.5
        if not plan.changes:
            return 0.0
        if set(plan.reuses) == set(best):
            return 2e-3 + 1e-2 * len(plan.options)
        return sum(price.get(str(change), 0.05) for change in plan.changes)

    monkeypatch.setattr(pricing.Measured, "error", error)
    made = fisopt.tune(Denoiser(), target, PROMPTS, steps=6, minutes=9)
    assert made.passes["transformer"] == [StepCache(steps=[1, 3], blocks=":")]


@pytest.mark.usefixtures("few")
def test_schedules_between_even_ones_are_tried_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_module, "FEW", 3)
    monkeypatch.setattr(contenders, "PRESETS", {})
    best = even_runs("transformer", range(8), 1, 1, -2)
    price = {"transformer steps 5-5 reuse": 1e-4}

    def error(_: Any, plan: Plan, clip: int) -> float:
        if set(plan.reuses) == set(best):
            return 2e-3 + 1e-2 * len(plan.options)
        return sum(price.get(str(change), 0.05) for change in plan.changes)

    monkeypatch.setattr(pricing.Measured, "error", error)
    made = fisopt.tune(Denoiser(), "1.3x", PROMPTS, steps=8, minutes=9)
    assert made.passes["transformer"] == [StepCache(steps=[4, 6], blocks=":")]


@pytest.mark.usefixtures("few")
def test_a_plan_does_without_what_its_speed_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest stays as it is, though the prices of single runs say that others are better."""
    monkeypatch.setattr(space_module, "FEW", 3)
    monkeypatch.setattr(contenders, "PRESETS", {})
    whole = {"1,3,5": 2e-3, "3,5": 1e-3, "4": 1e-4, "7": 1e-4}

    def error(_: Any, index: int, passes: dict[str, Any]) -> float:
        found = 0.0
        for each in passes["transformer"]:
            alone = isinstance(each, StepCache)
            found += whole.get(each.steps, 0.05 * len(each.steps)) if alone else 0.05
        return found

    monkeypatch.setattr(Trials, "error", error)
    made = fisopt.tune(Denoiser(), "1.3x", PROMPTS, steps=8, minutes=9)
    assert made.passes["transformer"] == [StepCache(steps=[3, 5], blocks=":")]


@pytest.mark.usefixtures("few")
def test_what_has_no_price_is_not_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even schedules may reach what the prices so far do not; else more minutes are asked for."""
    monkeypatch.setattr(contenders, "PRESETS", {})

    def screen(_: Any) -> None:
        raise pricing.OutOfTimeError

    monkeypatch.setattr(pricing.Prices, "screen", screen)
    made = fisopt.tune(Denoiser(), "1.3x", PROMPTS, steps=6, minutes=9)
    assert not made.reached
    assert not any(made.passes.values())
    said = "; ".join(made.notes)
    assert "changes have no price: give more minutes" in said
    assert "with every option" not in said
    monkeypatch.setattr(space_module, "FEW", 3)
    made = fisopt.tune(Denoiser(), "1.3x", PROMPTS, steps=6, minutes=9)
    assert made.reached
    assert [type(p) for p in made.passes["transformer"]] == [StepCache]


@pytest.mark.usefixtures("few")
def test_a_recipe_gives_its_numbers_again_and_a_second_run_measures_nothing(tmp_path: Path) -> None:
    pipeline, kept, seen = Denoiser(), tmp_path / "measured.json", []
    given: dict[str, Any] = {"steps": 2, "minutes": 9, "progress": kept}
    made = fisopt.tune(pipeline, "1.3x", PROMPTS, **given, seen=seen.append)
    assert made.reached
    assert made.speed_up >= 1.3
    assert seen == [*range(1, len(seen) + 1)]
    assert set(json.loads(kept.read_text())["prompts"]) == {"0", "1"}
    dense = [latents(pipeline, i, 2) for i in range(2)]
    fisopt.optimize(pipeline, recipe=made.save(tmp_path / "r.yaml"), backend="eager")
    recipe = pipeline.transformer.recipe
    assert recipe.tuned["steps"] == 2
    ends = [float((latents(pipeline, i, 2) - d).norm() / d.norm()) for i, d in enumerate(dense)]
    assert (ends[0] * ends[1]) ** 0.5 == pytest.approx(made.error, rel=1e-3)
    with pytest.warns(UserWarning, match="tuned for 2 denoising steps .* has 3"):
        latents(pipeline, 0, 3)
    fisopt.restore(pipeline)
    known = len(seen)
    again = fisopt.tune(pipeline, "1.3x", PROMPTS, **given, seen=seen.append)
    assert again.error == made.error
    assert len(seen) == known


@pytest.mark.usefixtures("few")
def test_two_transformers_and_an_error(tmp_path: Path) -> None:
    pipeline = Denoiser(second=True)
    made = fisopt.tune(pipeline, "error<=0.05", PROMPTS, steps=2, minutes=9)
    assert made.error <= 0.05
    assert set(made.passes) == {"transformer", "transformer_2"}
    assert set(made.save(tmp_path / "r.yaml")) == set(made.passes)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "r.transformer.yaml",
        "r.transformer_2.yaml",
    ]


@pytest.mark.usefixtures("few")
def test_out_of_reach_is_the_nearest() -> None:
    made = fisopt.tune(Denoiser(), "50x", PROMPTS, steps=1, minutes=9)
    assert not made.reached
    assert made.speed_up > 1.2
    assert any("out of reach: with every option in every block" in note for note in made.notes)


@pytest.mark.usefixtures("few")
def test_rehearsal_runs_no_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisopt.OptimizedModule, "_run", lambda *_: pytest.fail("it ran"))
    found = fisopt.rehearse(Denoiser(), PROMPTS, steps=2, target="1.2x")
    assert found.changes == 2 * 4 * 3 + 1
    assert found.generations > 4
    assert found.minutes is not None
    assert found.peak > 0
    assert found.most > 1.3
    (frames, *_) = found.plan["transformer"]
    assert isinstance(frames, fisopt.FrameInterleave)


def test_a_rehearsal_needs_no_weights() -> None:
    """The options that have a price on the testbed, in a model of which shapes are known."""
    found = rehearse_program(captured("wan"), steps=2, target="1.5x")
    assert found.plan["transformer"]
    assert rehearse_program(captured("wan"), steps=2, target="99x").plan == {}
    (component,) = space({0: 1}).components.values()
    options = [o for part in BLOCK for o in options_of(part, 5)]  # type: ignore[arg-type]
    assert {str(o) for o in options if o in component.saved and not o.tiles} <= set(prior().options)


def test_the_plan_of_a_rehearsal_is_as_fast_as_asked() -> None:
    """Anchors that rotate are more frames at some steps than where options are costed."""
    dense, steps, target = captured("wan"), 2, 1.3
    found = rehearse_program(dense, steps=steps, target=f"{target}x")
    variants = Variants.of(found.plan["transformer"], steps)
    held = plan_steps(variants, steps, lambda v: PassManager.of(v, strict=False).run(dense))
    assert held.ratio is not None
    assert held.ratio >= target
    assert found.speed_up == pytest.approx(held.ratio)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "0.5x"}, "slower than dense"),
        ({"target": "12"}, "wanted '2x'"),
        ({"prompts": []}, "got 0 prompts, wanted two or more"),
        ({"prompts": ["a"]}, "got 1 prompts, wanted two or more"),
        ({"prompts": "ab"}, "prompts must be a list of texts"),
        ({"minutes": 0}, "minutes must be a number above 0"),
        ({"minutes": 1e-6}, "do not allow one measurement"),
        ({"pipeline": Denoiser}, "has no transformer"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    told = {"pipeline": Denoiser(), "target": "2x", "prompts": PROMPTS, "steps": 1, **given}
    with pytest.raises(FisoptError, match=message):
        fisopt.tune(told.pop("pipeline"), told.pop("target"), told.pop("prompts"), **told)


def test_noise_that_is_not_paired_is_named() -> None:
    with pytest.raises(
        InputError,
        match=r"end with different latents.*scheduler \(FlowMatchEulerDiscreteScheduler\)",
    ):
        fisopt.tune(Denoiser(noisy=True), "2x", PROMPTS, steps=2)


def test_places_have_names() -> None:
    place = Place("transformer", (0, 1, 2), (3, 5), "feed_forward")
    assert str(place) == "transformer steps 0-2 blocks 3,5 feed_forward"
    assert str(Option("self_attention", 2, "anchors")) == "self_attention stride 2 anchors"
    with pytest.raises(OptionError):
        fisopt.tune(Denoiser(), "2 frames", PROMPTS, steps=2)


def test_linears_in_fp8_are_in_every_clip_and_the_error_is_told_against_the_exact_model(
    few: None, tmp_path: Path
) -> None:
    """The search compares with the rounded dense clip, what is told with the unrounded one."""
    pipeline = Denoiser()
    model = pipeline.transformer
    exact = [latents(pipeline, i, 2) for i in range(2)]
    kept = tmp_path / "measured.json"
    found = fisopt.tune(
        pipeline, "1.2x", PROMPTS, steps=2, minutes=5, linear="fp8-simulated", progress=kept
    )
    assert pipeline.transformer is model
    recipe = found.recipes["transformer"]
    assert recipe.kernels.linear == "fp8-simulated"
    fisopt.optimize(pipeline, recipe=recipe, backend="eager")
    got = [latents(pipeline, i, 2) for i in range(2)]
    assert "simulated fp8 in" in str(pipeline.transformer.report)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
    assert found.error == pytest.approx((errors[0] * errors[1]) ** 0.5, rel=1e-3)
    measured = json.loads(kept.read_text())["prompts"]
    for index, error in enumerate(errors):
        [told] = [e for n, e in measured[str(index)].items() if "linears in FP8" in n]
        assert told == pytest.approx(error**2, rel=1e-3)
    assert any("leave" in n and "dB to the model in its own precision" in n for n in found.notes)
    assert any("pass linear='fp8' together with the recipe" in n for n in found.notes)


@pytest.mark.slow
def test_a_bound_that_fp8_alone_passes_leaves_the_model_dense(few: None, tmp_path: Path) -> None:
    """And the plan says that it is missed."""
    pipeline = Denoiser()
    model = pipeline.transformer
    exact = [latents(pipeline, i, 2) for i in range(2)]
    fisopt.optimize(pipeline, [], backend="eager", linear="fp8-simulated")
    rounded = [latents(pipeline, i, 2) for i in range(2)]
    alone = [float((a - b).norm() / b.norm()) for a, b in zip(rounded, exact, strict=True)]
    pipeline.transformer, kept = model, tmp_path / "measured.json"
    options: dict[str, Any] = {"steps": 2, "minutes": 5, "progress": kept}
    bounded = fisopt.tune(pipeline, "error<=0.0001", PROMPTS, linear="fp8-simulated", **options)
    assert not bounded.reached
    assert bounded.passes == {"transformer": []}
    assert bounded.error == pytest.approx((alone[0] * alone[1]) ** 0.5, rel=1e-3)
    assert bounded.predicted == pytest.approx(bounded.error, rel=1e-3)
    with pytest.raises(InputError, match="was measured with other linear"):
        fisopt.tune(pipeline, "1.2x", PROMPTS, **options)


def test_simulated_fp8_has_no_time_and_fp8_needs_a_device() -> None:
    pipeline = Denoiser()
    for target, costs in (("350ms", None), ("2x", "eager")):
        with pytest.raises(OptionError, match="fp8-simulated' has those of no device"):
            fisopt.tune(pipeline, target, PROMPTS, steps=3, costs=costs, linear="fp8-simulated")  # type: ignore[arg-type]
    with pytest.raises(fisopt.LoweringError, match="needs a GPU that multiplies FP8"):
        fisopt.tune(pipeline, "2x", PROMPTS, steps=3, linear="fp8")
    with pytest.raises(OptionError, match="linear must be one of"):
        fisopt.tune(pipeline, "2x", PROMPTS, steps=3, linear="fp9")  # type: ignore[arg-type]
