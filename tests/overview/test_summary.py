"""The summary of real pipelines with tiny components, as text and as JSON."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

import fisopt
from fisopt import FrameInterleave, InputError
from fisopt.overview.rate import rate
from fisopt.overview.summary import StepSummary, Summary
from fisopt.runtime import captures
from tests.conftest import captured
from tests.runtime.pairs import Pair
from tests.zoo import zoo

pytestmark = pytest.mark.xdist_group("wan")


def wan(scheduler: Any, **more: Any) -> Any:
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    return WanPipeline(**held, scheduler=scheduler, transformer=zoo()["wan"].model, **more)


def clip(pipe: Any, steps: int) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    width = zoo()["wan"].model.config.text_dim
    texts = torch.randn(2, 1, 12, width, generator=torch.Generator().manual_seed(0))
    frames: torch.Tensor = pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        height=48,
        width=64,
        num_frames=17,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames
    return frames


def test_both_transformers_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with passes that differ by step, one without: their steps are those of one clip."""
    first = zoo()["wan"].model
    pipe = wan(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer_2=deepcopy(first),
        boundary_ratio=0.7,
    )
    program = captured("wan")
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    passes: Any = {"transformer": [FrameInterleave(stride=3, steps="1:")], "transformer_2": []}
    fisopt.optimize(pipe, passes, backend="eager")
    assert "nothing has run yet" in str(fisopt.summary(pipe))
    clip(pipe, 3)
    for steps in (5, 5):
        clip(pipe, steps)
    found = fisopt.summary(pipe)
    noisy = [s.step for s in found.steps if s.transformer == "transformer"]
    assert noisy == [*range(len(noisy))]
    assert 1 < len(noisy) < 5
    assert [s.step for s in found.steps] == [*range(5)]
    assert all(s.calls == 2 and s.measured_ms > 0 for s in found.steps)  # type: ignore[operator]
    dense = [s for s in found.steps if not s.passes]
    sparse = [s for s in found.steps if s.passes == ("FrameInterleave",)]
    assert [s.step for s in sparse] == noisy[1:]
    assert {s.speed_up for s in dense} == {1.0}
    predicted = sparse[0].predicted_ms, dense[0].predicted_ms
    assert all(predicted)
    assert predicted[1] / predicted[0] == pytest.approx(sparse[0].speed_up)  # type: ignore[operator]
    density = pipe.transformer.report.variants[-1].density
    assert sparse[0].speed_up == pytest.approx(1 / density)
    assert json.loads(found.to_json()) == found.to_dict()
    assert found.to_dict()["transformers"][1]["passes"] == []
    text = str(found)
    assert "transformer_2: WanTransformer3DModel (eager)" in text
    assert f"1-{noisy[-1]}" in text
    assert "predicted for transformer_2: FLOPs at" in text


class Picky(fisopt.Pass):
    """A pass that takes no block."""

    def run(self, rewriter: fisopt.Rewriter) -> None:
        rewriter.skip("layers.0", "it is not to its taste")


def test_steps_of_a_cache_have_rows_of_their_own() -> None:
    """What a cache computes and what it takes from an earlier step are the same passes."""
    ratios = (1.0, 1.0, 8.0, 8.0, 1.0)
    steps = tuple(
        StepSummary(i, "transformer", ("StepCache",), 1, x, 10 / x, 12 / x)
        for i, x in enumerate(ratios)
    )
    lines = [line for line in str(Summary((), steps, {})).splitlines() if "StepCache" in line]
    found = [[cell.strip() for cell in line.split("│")] for line in lines]
    assert [(row[1], row[5]) for row in found] == [
        ("0-1", "1.00x"),
        ("2-3", "8.00x"),
        ("4", "1.00x"),
    ]


def test_recaptures_and_fallbacks_are_said() -> None:
    pair = Pair(passes=[Picky()], strict=False)
    pair.check(changed=False)
    pair.model.layers[0].note = 1.0
    pair.check(changed=False)
    (found,) = fisopt.summary(pair.fast).transformers
    assert found.recaptured == {"layers.0.note was absent, is 1.0": 1}
    assert found.fallbacks == {"Picky: not applied to layers.0: it is not to its taste": 2}
    assert "layers.0.note was absent" in str(fisopt.summary(pair.fast))
    assert found.weights == {"cpu": sum(p.numel() * 4 for p in pair.model.parameters())}


def test_calls_without_timesteps() -> None:
    pair = Pair()
    pair.check(changed=False)
    pair.check(changed=False)
    assert [call.compiled for call in pair.fast.calls] == [True, False]
    assert len(fisopt.summary(pair.fast).steps) == 2, "no timestep: each call is a step"
    assert rate(torch.device("meta"), torch.float32) is None
    assert rate(torch.device("cpu"), torch.float32) > 1e6  # type: ignore[operator]


def test_what_was_not_optimised_is_said() -> None:
    pipe = wan(FlowMatchEulerDiscreteScheduler())
    assert "transformer: WanTransformer3DModel, not optimised" in str(fisopt.summary(pipe))
    with pytest.raises(InputError, match="has no transformer"):
        fisopt.summary(object())
