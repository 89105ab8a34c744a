"""Step caches against a plain loop over the model's layers, and against diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

import fisopt
from fisopt import FrameInterleave, OptionError, PreconditionError, StepCache, TileAttention
from tests.conftest import captured, plain_captured
from tests.passes.step_loop import BRANCHES, STEPS, calls, optimized, run, wanted
from tests.plain_dit import FORMS, Form
from tests.zoo import zoo


@pytest.mark.parametrize("form", [FORMS["fused"], FORMS["text_in_front"]], ids=["across", "joint"])
@pytest.mark.parametrize(
    ("cache", "same"),
    [
        (StepCache(0.15), {"threshold": 0.15}),
        (StepCache(0.15, order=1), {"threshold": 0.15, "order": 1}),
        (StepCache(0.15, max_run=1), {"threshold": 0.15, "max_run": 1}),
        (
            StepCache(0.15, blocks="2:", steps="3:"),
            {"threshold": 0.15, "first": 2, "reuses": range(3, STEPS)},
        ),
        (StepCache(0.15, blocks="1:-1", order=1), {"threshold": 0.15, "last": 2, "order": 1}),
        (StepCache(steps="1::3,2::3"), {"reuses": (1, 2, 4, 5)}),
        (
            StepCache(steps="2:4,5", order=1, blocks=":2"),
            {"reuses": (2, 3, 5), "order": 1, "first": 0, "last": 2},
        ),
    ],
    ids=lambda x: repr(x) if isinstance(x, StepCache) else "",
)
def test_a_plain_loop(form: Form, cache: StepCache, same: dict[str, Any]) -> None:
    """Two generations: the second begins without what the first has left."""
    fast = optimized(form, [cache])
    for seed in range(2):
        want, ran = wanted(form, seed, **same)
        for got, expected in zip(run(fast, form, seed), want, strict=True):
            torch.testing.assert_close(got, expected)
        assert not all(ran)
        assert all(ran[:2])
        if cache.threshold is not None:
            assert ran[0::2] != ran[1::2]  # each branch decides for itself
    assert not fast.report.notes


def test_first_block_cache() -> None:
    """The same decisions as diffusers', and to the bit the same results."""
    case, ran, want = zoo()["wan"], [], []

    def steps() -> Iterator[tuple[int, str, dict[str, Any]]]:
        for step, branch in [(s, b) for s in range(5) for b in BRANCHES]:
            inputs = case.inputs(5, 3, 4, batch=2)
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(inputs["hidden_states"].shape, generator=generator)
            inputs["hidden_states"] += BRANCHES[branch] * (1 + step % 3) * noise
            yield step, branch, inputs

    case.model.enable_cache(FirstBlockCacheConfig(threshold=0.06))
    handle = case.model.blocks[-1].ffn.register_forward_hook(lambda *_: ran.append(True))
    try:
        for _, branch, inputs in steps():
            with case.model.cache_context(branch):
                want.append(case.model(**inputs)[0])
    finally:
        handle.remove()
        case.model.disable_cache()
    fast = fisopt.optimize(captured("wan"), [StepCache(0.06)], backend="eager")
    for (step, branch, inputs), expected in zip(steps(), want, strict=True):
        with fast.cache_context(branch, step_index=step, num_inference_steps=6):
            torch.testing.assert_close(fast(**inputs)[0], expected, rtol=0, atol=0)
    computed, reused = ("3 of 4 blocks computed, what they add is stored", "3 of 4 blocks reused")
    assert (
        fast.report.decisions[f"StepCache: {computed}"] == len(ran) - 2
    )  # the first steps look not
    assert fast.report.decisions[f"StepCache: {reused}"] == len(want) - len(ran)
    assert 2 < len(ran) < len(want)


@pytest.mark.parametrize("order", [0, 1])
def test_with_other_passes(order: int) -> None:
    """In any order of the list: what is kept is what the sparse, tiled or reduced blocks add."""
    form, sparse = FORMS["fused"], (FrameInterleave(stride=2), TileAttention(1, blocks="1:"))
    model, cache = plain_captured(form)[0], StepCache(steps="1::3,2::3", order=order)
    alone, embed, unembed = optimized(form, sparse), model.embed, model.unembed

    def first(video: Tensor, text: Tensor, time: Tensor) -> Tensor:
        angles = torch.arange(video.shape[1])[:, None] * model.frequencies
        return unembed(model.layers[0](embed(video), text, model.time(time[:, None, None]), angles))

    want, held = [], {}
    for step, branch, inputs in calls(form):
        now = first(**inputs)
        if step % 3 == 0:
            added = alone(**inputs)["video"] - now
            slope = (added - held[branch][0]) / 3 if step and order else torch.zeros_like(added)
            held[branch] = added, slope
        added, slope = held[branch]
        want.append(now + added + step % 3 * slope)
    for passes in ((*sparse, cache), (cache, *sparse)):
        fast = optimized(form, passes)
        for got, expected in zip(run(fast, form), want, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": -0.1}, "threshold.*at least 0.*got -0.1"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": True}, "threshold.*got True"),
        ({"threshold": 0.1, "order": 2}, "order must be 0 or 1, got 2"),
        ({"threshold": 0.1, "max_run": 0}, "max_run.*at least 1"),
        ({"steps": "1::2", "max_run": 3}, "max_run is for a cache with a threshold"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        StepCache(**options)


def test_two_caches() -> None:
    with pytest.raises(OptionError, match="another step cache"):
        optimized(FORMS["fused"], [StepCache(0.1), StepCache(steps="1::2", blocks="2:")])


def test_blocks_that_do_not_fit() -> None:
    program = plain_captured(FORMS["fused"])[1]
    for cache, said in (
        (StepCache(0.1, blocks=":"), "the blocks before the first of them decide"),
        (StepCache(0.1, blocks="3:"), "these are none of the model's 3 video blocks"),
        (StepCache(steps="1::2", blocks="4"), "4 is outside"),
    ):
        with pytest.raises(PreconditionError, match=said):
            cache(program)


class Narrowing(torch.nn.Module):
    """Layers that replace what they are given, so that none of it is a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video).relu()
        return video


def test_no_residual_stream() -> None:
    spec = fisopt.ModelSpec(("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))
    video = {"video": torch.randn(1, 10, 6)}
    program = fisopt.capture(Narrowing().eval().requires_grad_(False), video, spec=spec)
    cache = StepCache(steps="1::2", blocks=":")
    with pytest.raises(
        PreconditionError, match=r"layers\.0, layers\.1.*is no update of an argument"
    ):
        cache(program)
    left = cache(program, strict=False)
    assert not left.modified
    assert left.notes == ("dense: none of 2 blocks can be reused",)


def test_report_and_prediction() -> None:
    """The parts of a call are called parts; the decisions are counted."""
    form = FORMS["fused"]
    fast = optimized(form, [StepCache(0.15)])
    run(fast, form)
    look, computed, reused = (
        next(v for v in fast.report.variants if v.part and text in v.applied[0].result.notes[0])
        for text in ("run where the change is more than 0.15", "computed", "reused")
    )
    assert look.density + computed.density == pytest.approx(1, abs=0.01)
    assert 1 / 3 < look.density + reused.density < 0.4  # one of three blocks
    assert "a part of a call" in str(fast.report)
    assert "2 of 3 blocks reused: " in str(fast.report)
    passes = StepCache(steps="1::2")
    ratio = fisopt.predicted_ratio(plain_captured(form)[1], passes(plain_captured(form)[1]).program)
    assert 2.5 < ratio < 3


def test_nothing_is_known_beforehand() -> None:
    fast = optimized(FORMS["fused"], [StepCache(0.15)])
    inputs = next(calls(FORMS["fused"]))[2]
    with pytest.raises(
        fisopt.ScheduleError, match="StepCache decides at each step by its measurements"
    ):
        fast.warmup(inputs, num_steps=STEPS)
    with pytest.raises(fisopt.ExportError, match=r"StepCache decides.*has a fixed schedule"):
        fisopt.export(fast, "never", example_inputs=inputs, steps=STEPS)
