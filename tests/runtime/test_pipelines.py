"""Step, step count and guidance branch through the real diffusers pipelines, tiny components."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    LTXPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanVideoToVideoPipeline,
)

import fisopt
from fisopt import InputError, ScheduleError, Step
from fisopt.runtime import captures
from fisopt.runtime.generation import Generation
from tests.conftest import captured
from tests.zoo import zoo

pytestmark = pytest.mark.xdist_group("wan")
DENSE_ENDS = fisopt.FrameInterleave(stride=2, steps="1:-1")
Run = Callable[[int], Any]


def wan() -> tuple[Any, Run, list[str]]:
    model = zoo()["wan"].model
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=model,
    )
    return pipe, _text_run(pipe, model.config.text_dim, 48, 17), ["cond", "uncond"]


def cogvideox() -> tuple[Any, Run, list[str]]:
    model = zoo()["cogvideox_2b"].model
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=CogVideoXDDIMScheduler(),
        transformer=model,
    )
    return pipe, _text_run(pipe, model.config.text_embed_dim, 48, 17), ["cond_uncond"]


def ltx() -> tuple[Any, Run, list[str]]:
    model = zoo()["ltx"].model
    pipe = LTXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=model,
    )
    masks = {
        "prompt_attention_mask": torch.ones(1, 12),
        "negative_prompt_attention_mask": torch.ones(1, 12),
    }
    return pipe, _text_run(pipe, model.config.caption_channels, 96, 33, **masks), ["cond_uncond"]


def hunyuan_video15() -> tuple[Any, Run, list[str]]:
    model = zoo()["hunyuan_video15"].model
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    config = model.config

    def texts(prefix: str) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}prompt_embeds": torch.randn(1, 12, config.text_embed_dim),
            f"{prefix}prompt_embeds_mask": torch.ones(1, 12),
            f"{prefix}prompt_embeds_2": torch.randn(1, 7, config.text_embed_2_dim),
            f"{prefix}prompt_embeds_mask_2": torch.ones(1, 7),
        }

    def run(steps: int) -> Any:
        return pipe(
            **texts(""),
            **texts("negative_"),
            height=48,
            width=64,
            num_frames=17,
            num_inference_steps=steps,
            output_type="latent",
        ).frames

    return pipe, run, ["pred_cond", "pred_uncond"]


def _text_run(pipe: Any, width: int, height: int, num_frames: int, **more: Any) -> Run:
    def run(steps: int) -> Any:
        return pipe(
            prompt_embeds=torch.randn(1, 12, width),
            negative_prompt_embeds=torch.randn(1, 12, width),
            height=height,
            width=height * 4 // 3,
            num_frames=num_frames,
            num_inference_steps=steps,
            output_type="latent",
            **more,
        ).frames

    return run


@pytest.mark.parametrize("build", [wan, cogvideox, ltx, hunyuan_video15])
def test_dense_ends_through_the_pipeline(
    build: Callable[[], tuple[Any, Run, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, run, branches = build()
    pipe.set_progress_bar_config(disable=True)
    original = pipe.transformer
    assert fisopt.optimize(pipe, [DENSE_ENDS], backend="eager") is pipe
    assert pipe.transformer.original is original
    seen: list[tuple[str, bool]] = []
    plan = fisopt.OptimizedModule.plan

    def spy(self: Any, inputs: Any, variant: Any) -> Any:
        seen.append((self.branch, bool(variant.passes)))
        return plan(self, inputs, variant)

    monkeypatch.setattr(fisopt.OptimizedModule, "plan", spy)
    for steps in (4, 3):
        seen.clear()
        assert torch.isfinite(run(steps)).all()
        wanted = [(b, 0 < step < steps - 1) for step in range(steps) for b in branches]
        assert seen == wanted
    densities = [variant.density for variant in pipe.transformer.report.variants]
    assert densities[0] == 1.0
    assert len(densities) == 2
    assert densities[1] < 1.0


def test_two_transformers_have_passes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Wan 2.2 A14B one transformer runs the noisy steps, the other one the rest."""
    pipe, run, _ = wan()
    first, second = pipe.transformer, deepcopy(pipe.transformer)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.7)
    pipe.set_progress_bar_config(disable=True)
    program = captured("wan")
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    passes = {
        "transformer": [fisopt.FrameInterleave(stride=3, steps="1:")],
        "transformer_2": [fisopt.FrameInterleave(stride=2, steps=":-1")],
    }
    fisopt.optimize(pipe, passes, backend="eager")
    seen: list[tuple[bool, int, int | None, bool]] = []
    plan = fisopt.OptimizedModule.plan

    def spy(self: Any, inputs: Any, variant: Any) -> Any:
        step = self.step
        seen.append((self.original is second, step.index, step.count, bool(variant.passes)))
        return plan(self, inputs, variant)

    monkeypatch.setattr(fisopt.OptimizedModule, "plan", spy)
    assert torch.isfinite(run(5)).all()
    noisy = [index for later, index, _, _ in seen if not later]
    assert 0 in noisy
    assert 4 not in noisy
    assert seen == [(i not in noisy, i, 5, 0 < i < 4) for i in range(5) for _ in "ab"]
    densities = [m.report.variants[-1].density for m in (pipe.transformer, pipe.transformer_2)]
    assert densities[0] < 1
    assert densities[1] == 1.0, "the last step, which was dense, came last"
    fisopt.optimize(pipe, {"transformer_2": []}, backend="eager")
    assert (pipe.transformer.original, pipe.transformer_2.original) == (first, second)


Clip = Callable[..., Any]


@pytest.fixture
def video_to_video(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any], Clip]:
    """A pipeline of two calls a step that names no branch, its parts, and how a clip is made."""
    model, program = zoo()["wan"].model, captured("wan")
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": model}
    pipe = WanVideoToVideoPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=9.0), **parts)
    texts = torch.randn(2, 1, 12, model.config.text_dim)

    def clip(on: Any, noise: int, strength: float = 1.0, cut: int | None = None) -> Any:
        def stop(_: Any, index: int, *__: Any) -> dict[str, Any]:
            if index + 1 == cut:
                raise InterruptedError
            return {}

        on.set_progress_bar_config(disable=True)
        return on(
            latents=torch.randn(1, 4, 5, 6, 8, generator=torch.Generator().manual_seed(noise)),
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            num_inference_steps=4,
            strength=strength,
            height=48,
            width=64,
            output_type="latent",
            callback_on_step_end=stop,
        ).frames

    return pipe, parts, clip


def test_a_clip_after_one_that_was_cut_is_the_clip_alone(video_to_video: Any) -> None:
    pipe, _, clip = video_to_video
    fisopt.optimize(pipe, [fisopt.TokenReduction(0.5, 0.4, cache_steps=3)], backend="eager")
    alone = clip(pipe, 1)
    for cut, strength in ((1, 1.0), (2, 0.75)):
        with pytest.raises(InterruptedError):
            clip(pipe, 2, strength, cut)
        assert torch.equal(clip(pipe, 1), alone)
    assert not pipe.transformer.report.notes, "no pass ran afresh: no branch lost its state"


ENDS = [fisopt.FrameInterleave(stride=2, steps="1:-1")]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that were entered."""
    entered: list[Step] = []
    step = Generation.step

    def spy(self: Generation, inputs: Any) -> Step:
        entered.append(step(self, inputs))
        return entered[-1]

    monkeypatch.setattr(Generation, "step", spy)
    return entered


@pytest.mark.parametrize("optimised", ["the first pipeline", "both pipelines", "the module"])
def test_pipelines_that_share_a_transformer_have_their_own_steps(
    video_to_video: Any, seen: list[Step], optimised: str
) -> None:
    pipe, parts, clip = video_to_video
    if optimised == "the module":
        pipe.transformer = fisopt.optimize(pipe.transformer, ENDS, backend="eager")
    else:
        fisopt.optimize(pipe, ENDS, backend="eager")
    parts["transformer"] = pipe.transformer
    other = WanVideoToVideoPipeline(scheduler=UniPCMultistepScheduler(flow_shift=3.0), **parts)
    if optimised == "both pipelines":
        fisopt.optimize(other, ENDS, backend="eager")
    for on, strength in ((pipe, 0.5), (other, 1.0), (pipe, 0.5), (other, 1.0)):
        seen.clear()
        clip(on, 1, strength)
        count = int(4 * strength)
        assert seen == [Step(i, count, 4 - count) for i in range(count) for _ in "ab"]


def test_a_loop_that_is_no_pipeline_s_is_refused_the_last_step(video_to_video: Any) -> None:
    pipe, _, clip = video_to_video
    fast = fisopt.optimize(pipe.transformer, ENDS, backend="eager")
    inputs = zoo()["wan"].inputs(5, 3, 4)
    with pytest.raises(ScheduleError, match="from a pipeline whose scheduler knows it"):
        fast(**inputs)
    fisopt.optimize(pipe, ENDS, backend="eager")
    clip(pipe, 1)
    with pytest.raises(ScheduleError, match="from a pipeline whose scheduler knows it"):
        pipe.transformer(**inputs)


def test_pipelines_that_share_a_transformer_run_at_once(video_to_video: Any) -> None:
    pipe, parts, clip = video_to_video
    fisopt.optimize(pipe, ENDS, backend="eager")
    parts["transformer"] = pipe.transformer
    other = WanVideoToVideoPipeline(scheduler=UniPCMultistepScheduler(flow_shift=3.0), **parts)
    alone = [clip(on, 1) for on in (pipe, other)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            made = [threads.submit(clip, on, 1) for on in (pipe, other)]
            assert all(map(torch.equal, (m.result() for m in made), alone))


def test_passes_by_transformer_are_for_pipelines_that_have_them() -> None:
    pipe, _, _ = wan()
    with pytest.raises(InputError, match="WanPipeline has no transformer_2; it has transformer"):
        fisopt.optimize(pipe, {"transformer_2": []})
    with pytest.raises(InputError, match="has no unet"):
        fisopt.optimize(pipe, {"unet": []})
    with pytest.raises(InputError, match="are for a pipeline; got WanTransformer3DModel"):
        fisopt.optimize(pipe.transformer, {"transformer": []})
    assert not isinstance(pipe.transformer, fisopt.OptimizedModule)
