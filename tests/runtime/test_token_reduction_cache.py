"""The matching cache: which step matches and which reuses, of which branch and generation."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fisopt
from fisopt import (
    FrameInterleave,
    InputError,
    OptimizedModule,
    Pass,
    PassError,
    ScheduleError,
    TokenReduction,
)
from fisopt.passes.token_reduction import Reduction
from fisopt.rewrite.pass_base import Step
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.rewriter import Rewriter
from tests import plain_dit
from tests.conftest import plain_captured
from tests.passes.dense_reduction import Attend, Options, reduced
from tests.plain_dit import FORMS

GRID = (7, 2, 3)
FORM = FORMS["text_in_front"]
CACHED = TokenReduction(0.6, 0.4, cache_steps=3, redraw=False)


@pytest.fixture
def model() -> OptimizedModule:
    """The optimised model, captured once for all tests."""
    return optimized([CACHED])


def optimized(passes: Sequence[Pass]) -> OptimizedModule:
    program, inputs = plain_captured(FORM)[1], plain_dit.inputs(FORM, *GRID)
    result: OptimizedModule = fisopt.optimize(program, passes, inputs, backend="eager")
    return result


def call(seed: int, step: int) -> dict[str, Any]:
    """The inputs of a call; the video changes from step to step."""
    inputs = plain_dit.inputs(FORM, *GRID)
    generator = torch.Generator().manual_seed(1000 * seed + step)
    inputs["video"] = torch.randn(inputs["video"].shape, generator=generator)
    return inputs


class Oracle:
    """The model with loops in the place of its attention, one memory a branch."""

    def __init__(self) -> None:
        self.original, _ = plain_captured(FORM)
        self.groups: dict[str, dict[Any, Any]] = {}

    def __call__(self, branch: str, fresh: bool, inputs: dict[str, Any], draw: int = 0) -> Tensor:
        memory = self.groups.setdefault(branch, {})
        if fresh:
            memory.clear()
        options = Options(0.6, 0.4, draw=draw, search="near")
        attend = Attend(options, lambda _: GRID, front=True, groups=memory)
        with reduced(self.original, ("layers.*",), attend):
            output: Tensor = self.original(**inputs)["video"]
        return output


def assert_close(got: Tensor, want: Tensor) -> None:
    assert float((got - want).abs().max()) <= 1e-5


def generate(model: OptimizedModule, seed: int, steps: int, first: int = 0) -> Iterator[Any]:
    """Both branches of a generation, as a pipeline calls them."""
    for step in range(first, steps):
        for branch in ("cond", "uncond"):
            inputs = call(seed + 50 * (branch == "uncond"), step)
            with model.cache_context(branch, step_index=step, num_inference_steps=steps):
                yield branch, step, inputs, model(**inputs)["video"]


def test_a_match_serves_its_period_its_branch_and_its_generation(model: OptimizedModule) -> None:
    """Seven steps are no multiple of three; the second generation starts anew."""
    oracle = Oracle()
    for seed, steps in ((1, 7), (2, 4)):
        for branch, step, inputs, got in generate(model, seed, steps):
            assert_close(got, oracle(branch, step % 3 == 0, inputs))
    programs = [v.passes for v in model.report.variants]
    assert len(programs) == 3, "as given, storing and loading"


def test_redrawn_destinations(model: OptimizedModule) -> None:
    """Each window draws its own, its later steps reuse them; steps that reuse share a Program."""
    drawn = optimized([replace(CACHED, redraw=None)])
    before = len(drawn.report.variants)
    oracles: dict[str, Oracle] = {"cond": Oracle(), "uncond": Oracle()}
    for branch, step, inputs, got in generate(drawn, 1, 7):
        want = oracles[branch](branch, step % 3 == 0, inputs, step // 3)
        assert_close(got, want)
    made = [v.applied[0].result.notes[-1] for v in drawn.report.variants[before:]]
    assert ["earlier step" in note for note in made] == [False, True, False, False]
    assert ["draw" in note for note in made] == [False, False, True, True]
    once = [video for *_, video in generate(model, 1, 7)]
    again = [video for *_, video in generate(drawn, 1, 7)]
    same = [torch.equal(a, b) for a, b in zip(once, again, strict=True)]
    assert same == [True] * 6 + [False] * 8, "the first window is the same, the others are not"
    repeated = [video for *_, video in generate(drawn, 1, 7)]
    assert all(map(torch.equal, again, repeated)), "equal seeds draw equally"


def test_reuse_is_not_matching(model: OptimizedModule) -> None:
    """The oracle that matches at every step differs, so the test above can fail."""
    oracle = Oracle()
    far = [
        float((got - oracle(branch, True, inputs)).abs().max())
        for branch, step, inputs, got in generate(model, 1, 3)
        if step
    ]
    assert max(far) > 1e-3


@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_run_that_starts_between_matches_at_once(model: OptimizedModule, first: int) -> None:
    oracle = Oracle()
    list(generate(model, 5, 2))  # an earlier generation, cut short, leaves nothing
    for branch, step, inputs, got in generate(model, 1, 7, first):
        assert_close(got, oracle(branch, step == first or step % 3 == 0, inputs))


@dataclass(frozen=True)
class HoldBlocks(Pass):
    """What the last block returns serves for two steps."""

    state: str = ""
    stepwise: bool = True

    def at(self, step: Step) -> Pass:
        return replace(self, state="load" if step.index % 2 else "store")

    def afresh(self) -> Pass:
        return replace(self, state="store") if self.state == "load" else self

    def run(self, rewriter: Rewriter) -> None:
        last = rewriter.program.blocks[-1]
        result = last.returned(last.results[0])
        assert result is not None
        if self.state == "store":
            rewriter.store("blocks", result)
        elif self.state == "load":
            value = result.meta["val"]
            held = rewriter.load("blocks", value.shape, value.dtype, value.device)
            rewriter.replace_uses(result, held)


def test_two_passes_keep_their_own_state() -> None:
    """A match for three steps, and a result for two: neither wipes what the other holds."""
    model, oracle = optimized([CACHED, HoldBlocks()]), Oracle()
    for seed in (1, 2):
        before: dict[str, Tensor] = {}
        for branch, step, inputs, got in generate(model, seed, 7):
            want = oracle(branch, step % 3 == 0, inputs)
            assert_close(got, before[branch] if step % 2 else want)
            before[branch] = got
    assert not model.report.notes


def test_every_pass_that_runs_afresh_is_reported() -> None:
    """A run that starts at step 1 finds nothing; only the pass whose state is missing makes it."""
    model = optimized([CACHED, HoldBlocks()])
    for _ in range(2):
        list(generate(model, 1, 7, first=1))
    assert dict(model.report.notes) == {
        f"{name} ran afresh at step 1, branch {branch!r}": 2
        for branch in ("cond", "uncond")
        for name in ("TokenReduction", "HoldBlocks")
    }
    assert "  HoldBlocks ran afresh at step 1, branch 'cond': 2 times" in str(model.report)


def test_state_that_nothing_makes_is_an_error() -> None:
    class NeverStored(HoldBlocks):
        def afresh(self) -> Pass:
            return self

    model = optimized([NeverStored()])
    with pytest.raises(
        ScheduleError, match=r"NeverStored: loads state that no earlier step.*afresh"
    ):
        list(generate(model, 1, 3, first=1))
    with pytest.raises(PassError, match="HoldBlocks/blocks is stored twice"):
        PassManager([HoldBlocks("store")] * 2, names=["HoldBlocks"] * 2).run(
            plain_captured(FORM)[1]
        )


def test_branches_without_names(model: OptimizedModule) -> None:
    """Two calls a step on one video, told apart by their text."""
    oracle = Oracle()
    for step in range(5):
        for text in (1.0, -1.0):
            inputs = call(1, step)
            inputs["text"] = text * inputs["text"]
            with model.cache_context("", step_index=step):
                got = model(**inputs)["video"]
                assert_close(got, oracle(str(text), step % 3 == 0, inputs))
    assert not model.report.notes


def test_two_threads_share_nothing(model: OptimizedModule) -> None:
    """Two pipelines at once get what each gets alone."""
    alone = {seed: [g for *_, g in generate(model, seed, 5)] for seed in (1, 2)}
    together: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(2)

    def run(seed: int) -> None:
        mine = together.setdefault(seed, [])
        for *_, got in generate(model, seed, 5):
            mine.append(got)
            barrier.wait(timeout=60)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, outputs in alone.items():
        assert all(map(torch.equal, outputs, together[seed]))
        assert len(together[seed]) == 10


def test_nothing_is_kept_after_the_last_step(model: OptimizedModule) -> None:
    for _, step, *_ in generate(model, 1, 5):
        if step < 4:
            assert model._generation.holds
    assert not model._generation.holds


def test_another_grid_is_matched_anew(model: OptimizedModule) -> None:
    """Frames are sparse from the second step on: the indices of the first do not fit there."""
    passes = [CACHED, FrameInterleave(stride=2, blocks=":", steps="1:")]
    model = fisopt.optimize(model, passes, backend="eager", example_inputs=call(1, 0))
    got = [video for *_, video in generate(model, 1, 3)]
    assert all(torch.isfinite(video).all() for video in got)
    notes = [n for v in model.report.variants for a in v.applied for n in a.result.notes]
    assert sum("matched at an earlier step" in n for n in notes) == 1
    assert len(model.report.variants) == 4, "as given, dense frames, loading, storing anew"


def test_as_many_tokens_of_another_grid_are_matched_anew() -> None:
    """Seven frames and their anchors keep one token of each place: what stays of the values is
    the destinations alone, whatever the step, but those of all frames are not the anchors'.
    """
    few = TokenReduction(value=0.9, destination_stride=(4, 1, 1), redraw=False)
    frames = FrameInterleave(stride=2, blocks=":", steps="1:4,5:")
    runs: list[list[Tensor]] = []
    for cache_steps in (1, 3):
        fast = optimized([replace(few, cache_steps=cache_steps), frames])
        runs.append([video for *_, video in generate(fast, 1, 5)])
    assert len(runs[0]) == 10
    assert all(torch.equal(alone, cached) for alone, cached in zip(*runs, strict=True))


def test_nan_names_block_and_step(model: OptimizedModule) -> None:
    calls = generate(model, 1, 5)
    for _ in range(6):
        next(calls)
    original = model.original
    weight = original.layers[1].attend.v.bias
    weight[3] = torch.nan
    try:
        with pytest.raises(InputError) as error:
            next(calls)
    finally:
        weight[3] = 0.0
    assert "layers.1/attention0.value.lost at step 3, branch 'cond'" in str(error.value)
    assert "NaN or infinity" in str(error.value)


def test_nan_without_steps() -> None:
    model = optimized([TokenReduction(0.5)])
    inputs = call(1, 0)
    inputs["video"][0, 7] = torch.inf
    with pytest.raises(InputError, match=r"layers\.0/attention0\.query\.lost at an unknown step"):
        model(**inputs)


def test_state_is_explicit() -> None:
    """The variant that stores returns what the variant that reuses takes, by the same names."""
    _, program = plain_captured(FORM)
    store, load = (CACHED.at(Step(i)) for i in (3, 4))
    assert isinstance(store, Reduction)
    assert CACHED.at(Step(0)) == store
    assert CACHED.at(Step(5)) == load
    assert load is not None
    assert load.afresh() == store
    first, later = store(program).program, load(program).program
    assert first.stores == later.loads
    assert len(first.stores) == 3 * 3, "kept and origin of queries, kept of values, each block"
    assert len(first.gauges) == 3 * 2
    assert not later.gauges
    ops = torch.ops.fisopt
    targets = {n.target for c in later.blocks for n in c.body.graph.nodes}
    assert not targets & {ops.match_tokens.default, ops.match_nearby.default}
    with pytest.raises(InputError, match="reuses state of an earlier step"):
        later(**plain_dit.inputs(FORM, 5, 2, 3, batch=2))
    mean = TokenReduction(0.6, 0.4, cache_steps=2, mode="mean").at(Step(0))
    assert mean is not None
    assert len(mean(program).program.stores) == 3 * 4


def test_each_shape_compiles_once(model: OptimizedModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three variants share their head and tail; matching stays one call and breaks no graph."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", partial(real, backend="aot_eager"))
    eager = [video for *_, video in generate(model, 1, 4)]
    compiled = fisopt.optimize(model, [CACHED], example_inputs=call(1, 0))
    torch._dynamo.reset()
    counters.clear()
    for (*_, got), want in zip(generate(compiled, 1, 4), eager, strict=True):
        assert_close(got, want)
    stages = sum(variant.stages for variant in compiled.report.variants)
    assert counters["stats"]["unique_graphs"] <= stages
    assert stages == 2 + 3, "head, tail, and a block that forgets, stores, loads"
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        list(generate(compiled, 2, 4))
