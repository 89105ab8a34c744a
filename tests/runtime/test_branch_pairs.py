"""Two ranks with one guidance branch each: two threads that send each other results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Queue
from threading import local

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import FrameInterleave, GuidanceParallel, OptimizedModule, Pass, Program, StepCache
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.runtime import branch_pairs
from fisopt.runtime.seen_inputs import SeenInputs
from tests.conftest import GRID
from tests.ranks import simulated
from tests.zoo import forms

STEPS = 3
LONGEST = 120
"""Seconds until a thread that waits is a failure."""
ALONE = "GuidanceParallel: a call was computed by one rank while the other waited"
Call = Callable[[str, int, Tensor, Tensor], Tensor]
Clip = Callable[[Call], Tensor]


class ThreadPair:
    """The rank of the thread that makes it, and what goes from one to the other."""

    here, sent = local(), (Queue[Tensor](), Queue[Tensor]())

    def __init__(self, group: str) -> None:
        assert group
        self.rank: int = self.here.rank

    def send(self, x: Tensor, owner: int) -> None:
        if self.rank == owner:
            self.sent[owner].put(x.clone())
        else:
            x.copy_(self.sent[owner].get(timeout=LONGEST))


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_pairs, "Pair", ThreadPair)


def dense() -> Program:
    return forms()["wan"].captured(*GRID, batch=1)


def module(passes: Sequence[Pass]) -> OptimizedModule:
    made: OptimizedModule = fisopt.optimize(dense(), passes, backend="eager")
    return made


def calling(made: OptimizedModule) -> Call:
    """How a pipeline calls a module."""

    def call(branch: str, step: int, latents: Tensor, text: Tensor) -> Tensor:
        with made.cache_context(branch, step_index=step, num_inference_steps=STEPS):
            timestep = torch.full((1,), 900.0 - 100 * step)
            result: Tensor = made(latents, timestep, text, return_dict=False)[0]
        return result

    return call


def start() -> tuple[Tensor, Tensor, Tensor]:
    """Noise, and the text of two branches."""
    inputs, other = (forms()["wan"].inputs(*GRID, seed=seed) for seed in (0, 1))
    return inputs["hidden_states"], inputs["encoder_hidden_states"], other["encoder_hidden_states"]


def clip(call: Call, change: int = STEPS, guided: int = STEPS) -> Tensor:
    """A clip; from steps on, the text of the second branch is another, and there is none."""
    latents, text, negative = start()
    for step in range(STEPS):
        if step == change:
            negative = negative + 1
        velocity = call("cond", step, latents, text)
        if step < guided:
            without = call("uncond", step, latents, negative)
            velocity = without + 2 * (velocity - without)
        latents = latents - velocity / STEPS
    return latents


def on_two_ranks(passes: Sequence[Pass], make: Clip) -> tuple[list[Tensor], list[OptimizedModule]]:
    """What both ranks make, and what they made it with."""
    modules = [module([*passes, GuidanceParallel()]) for _ in range(2)]

    def rank(number: int) -> Tensor:
        ThreadPair.here.rank = number
        with torch.no_grad():
            return make(calling(modules[number]))

    with simulated(2), ThreadPoolExecutor(2) as pool:
        return [*pool.map(rank, range(2), timeout=LONGEST)], modules


@pytest.mark.parametrize(
    "passes",
    [[FrameInterleave(rotate="steps")], [StepCache(steps="1:")]],
    ids=["frames_of_each_step", "cache"],
)
def test_each_rank_computes_one_branch(passes: list[Pass]) -> None:
    def twice(call: Call) -> Tensor:
        return torch.stack([clip(call), clip(call)])

    made, modules = on_two_ranks(passes, twice)
    with torch.no_grad():
        want = twice(calling(module(passes)))
    for got in made:
        torch.testing.assert_close(got, want, atol=0, rtol=0)
    ran = [[call.branch for call in each.calls] for each in modules]
    assert ran == [["cond"] * 2 * STEPS, ["uncond"] * 2 * STEPS]
    for each in modules:
        notes = each.report.notes
        assert notes.pop(ALONE) == 2, "the first step, which nothing tells of beforehand"
        assert not notes, "state is where its branch is"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(clip, change=2), "a branch came with another encoder_hidden_states"),
        (partial(clip, guided=1), "a branch that was expected was not called"),
    ],
)
def test_a_branch_that_is_not_as_expected_is_computed_as_it_is(make: Clip, said: str) -> None:
    made, modules = on_two_ranks([], make)
    with torch.no_grad():
        want = make(calling(module([])))
    for got, each in zip(made, modules, strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)
        assert each.report.notes == {ALONE: 3, f"GuidanceParallel: {said}": 1}
        assert f"{said}: 1 times" in str(each.report)


def test_without_ranks() -> None:
    call = calling(module([GuidanceParallel()]))
    with torch.no_grad(), pytest.raises(fisopt.PreconditionError, match="is not set up"):
        clip(call)
    with simulated(1), torch.no_grad():
        assert clip(call).isfinite().all()


def test_no_gradients() -> None:
    call, (latents, text, _) = calling(module([GuidanceParallel()])), start()
    with simulated(2), pytest.raises(fisopt.PreconditionError, match="has no gradient"):
        call("cond", 0, latents.requires_grad_(), text)


class Remembering(nn.Module):
    """One item, and what it leaves in its arguments."""

    def __init__(self, put: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.put = put

    def forward(self, video: Tensor, memory: dict[str, Tensor]) -> Tensor:
        for layer in self.layers:
            video = video + layer(video)
        if self.put:
            memory["k"] = memory["k"] + video.mean((0, 1))
        else:
            memory["k"].add_(video.mean((0, 1)))
        return video


@pytest.mark.parametrize("put", [False, True])
@torch.no_grad()
def test_what_is_left_in_arguments_is_refused(put: bool) -> None:
    """The rank that does not compute the call would not leave it there."""
    model = Remembering(put).eval()
    call = {"video": torch.randn(1, 30, 4), "memory": {"k": torch.zeros(4)}}
    spec = fisopt.ModelSpec(
        blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 6, 2, 3)
    )
    made = fisopt.optimize(model, [GuidanceParallel()], spec=spec, backend="eager")
    with simulated(2), pytest.raises(fisopt.PreconditionError, match="changes 'memory_k' in place"):
        made(**call)


def test_inputs_that_were_seen() -> None:
    x = torch.zeros(3)
    given = {"x": x, "text": torch.ones(2), "flag": True}
    seen = SeenInputs(Inputs.of(given))
    assert seen.differs(Inputs.of(given)) == []
    assert seen.differs(Inputs.of({**given, "x": torch.zeros(3)})) == [], "of equal values"
    assert seen.differs(Inputs.of({**given, "x": torch.zeros(4), "flag": 1})) == ["flag", "x"]
    assert seen.differs(Inputs.of({**given, "x": torch.ones(3)}), ["flag"]) == []
    assert seen.differs(Inputs.of({"x": x, "text": given["text"]})) == ["flag"]
    x.add_(0)
    assert seen.differs(Inputs.of(given)) == ["x"], "written into since then"
    with torch.inference_mode():
        y = torch.zeros(3)
        kept = SeenInputs(Inputs.of({"y": y}))
        y.add_(1)
        assert kept.differs(Inputs.of({"y": y})) == ["y"]
        assert kept.differs(Inputs.of({"y": torch.zeros(3)})) == []
