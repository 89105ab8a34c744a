from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from fisopt.errors import InputError, OptionError
from fisopt.models.testbed import (
    TestbedPipeline,
    build_pipeline,
    build_transformer,
    encode_prompts,
    load_testbed,
    null_embeddings,
    parse_prompt,
)
from fisopt.models.testbed.model import with_coordinates
from fisopt.models.testbed.pipeline import WEIGHTS

RED = "red circle moving left fast over waves"
BLUE = "blue square moving up slow over plain"


@pytest.fixture
def pipeline() -> TestbedPipeline:
    torch.manual_seed(0)
    made = build_pipeline(
        build_transformer(num_layers=2, num_attention_heads=1, attention_head_dim=24, ffn_dim=32)
    )
    made.set_progress_bar_config(disable=True)
    return made


def _seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Wrapped(nn.Module):
    """A stand-in for an optimised transformer: the forward signature and a record of contexts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.dtype, self.device = inner.dtype, inner.device
        self.calls = []

    @contextmanager
    def cache_context(self, name: str, **place: Any) -> Iterator[None]:
        self.calls.append((name, place))
        yield

    def forward(
        self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any, **rest: Any
    ) -> Any:
        return self.inner(hidden_states, timestep, encoder_hidden_states, **rest)


def test_output_types(pipeline: TestbedPipeline) -> None:
    made = {
        kind: pipeline(
            [RED, BLUE], num_frames=3, num_inference_steps=2, generator=_seed(), output_type=kind
        ).frames
        for kind in ("np", "pt", "latent")
    }
    assert made["np"].shape == (2, 3, 32, 32, 3)
    assert made["pt"].shape == (2, 3, 3, 32, 32)
    assert made["latent"].shape == (2, 3, 3, 32, 32)
    assert made["np"].min() >= 0
    assert made["np"].max() <= 1
    assert np.allclose(made["np"], made["pt"].permute(0, 1, 3, 4, 2))
    assert torch.allclose(made["pt"], (made["latent"].transpose(1, 2) / 2 + 0.5).clamp(0, 1))


def test_equals_euler_steps_written_out(pipeline: TestbedPipeline) -> None:
    noise = torch.randn(1, 3, 3, 32, 32, generator=_seed(1))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.shift)
    scheduler.set_timesteps(3)
    text = encode_prompts([parse_prompt(RED)])
    x = noise.clone()
    with torch.no_grad():
        for now, after in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
            t = (1000 * now).expand(1)
            cond, uncond = (
                pipeline.transformer(with_coordinates(x), t, words, return_dict=False)[0]
                for words in (text, null_embeddings(1))
            )
            x = x + (after - now) * (uncond + 3.0 * (cond - uncond))
    made = pipeline(
        RED,
        num_frames=3,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).frames
    assert torch.allclose(made, x, atol=1e-5)


def test_a_replaced_transformer_sees_step_and_branch(pipeline: TestbedPipeline) -> None:
    plain = pipeline(RED, num_frames=3, num_inference_steps=2, generator=_seed()).frames
    pipeline.transformer = Wrapped(pipeline.transformer)
    again = pipeline(RED, num_frames=3, num_inference_steps=2, generator=_seed()).frames
    assert np.allclose(plain, again, atol=1e-5)
    calls = pipeline.transformer.calls
    assert [(name, place["step_index"]) for name, place in calls] == [
        ("cond", 0),
        ("uncond", 0),
        ("cond", 1),
        ("uncond", 1),
    ]
    assert {place["num_inference_steps"] for _, place in calls} == {2}
    assert calls[0][1]["sigma"] == 1.0


def test_without_guidance_there_is_one_call_a_step(pipeline: TestbedPipeline) -> None:
    pipeline.transformer = Wrapped(pipeline.transformer)
    pipeline(RED, num_frames=2, num_inference_steps=2, guidance_scale=1.0)
    assert [name for name, _ in pipeline.transformer.calls] == ["cond", "cond"]


def test_a_clip_does_not_depend_on_its_batch(pipeline: TestbedPipeline) -> None:
    settings = {"num_frames": 2, "num_inference_steps": 2}
    both = pipeline([RED, BLUE], generator=[_seed(1), _seed(2)], **settings).frames
    alone = pipeline(BLUE, generator=_seed(2), **settings).frames
    assert np.allclose(both[1], alone[0], atol=1e-5)


def test_the_callback_sees_each_step_and_may_replace_tensors(pipeline: TestbedPipeline) -> None:
    seen = []

    def zero(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    made = pipeline(
        RED, num_frames=2, num_inference_steps=2, callback_on_step_end=zero, output_type="latent"
    )
    assert seen == [(0, ["latents"]), (1, ["latents"])]
    assert made.frames.abs().max() == 0


def test_a_negative_prompt_changes_the_clip(pipeline: TestbedPipeline) -> None:
    settings = {"num_frames": 2, "num_inference_steps": 1}
    none = pipeline(RED, generator=_seed(), **settings).frames
    away = pipeline(RED, negative_prompt=BLUE, generator=_seed(), **settings).frames
    assert not np.array_equal(none, away)


def test_save_and_load(pipeline: TestbedPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = load_testbed(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    settings = {"num_frames": 2, "num_inference_steps": 1, "return_dict": False}
    first, second = (p(RED, generator=_seed(), **settings)[0] for p in (pipeline, loaded))
    assert np.allclose(first, second, atol=1e-5)
    assert not loaded.transformer.training


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model_index"):
        load_testbed(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a cat"}, "got 2 words"),
        ({"prompt": []}, r"got prompt=\[\]"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"output_type": "gif"}, "output_type='gif', wanted one of np, pt, latent"),
        ({"negative_prompt": [RED, RED]}, "2 negative prompts for 1"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1"),
        ({"latents": torch.zeros(1, 3, 4, 8, 8)}, r"latents of shape \[1, 3, 4, 8, 8\]"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\], wanted some of latents"),
    ],
)
def test_bad_arguments_are_refused(
    pipeline: TestbedPipeline, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(**{"prompt": RED, **settings})


@pytest.mark.skipif(not (WEIGHTS / "model_index.json").exists(), reason="no weights packaged yet")
def test_the_packaged_weights_are_good_enough_to_measure_on() -> None:
    transformer = load_testbed().transformer
    weights = WEIGHTS / "transformer" / "diffusion_pytorch_model.safetensors"
    assert transformer.config.num_layers >= 12
    assert weights.stat().st_size <= 20e6
    made = all(parameter.isfinite().all() for parameter in transformer.parameters())
    assert made


@pytest.mark.parametrize(("steps", "last"), [(2, 0.785), (4, 0.5714)])
def test_packaged_students(steps: Literal[2, 4], last: float) -> None:
    """Guidance is folded in, and their samplers end where something is left to do."""
    student, teacher = load_testbed(student=steps), load_testbed()
    for pipe in (student, teacher):
        pipe.set_progress_bar_config(disable=True)
    assert student.transformer.dtype == torch.float32
    student.scheduler.set_timesteps(steps)
    assert float(student.scheduler.sigmas[-2]) == pytest.approx(last, abs=1e-3)
    told: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "num_frames": 5}
    clips = [
        torch.as_tensor(pipe(RED, output_type="pt", generator=_seed(), **told).frames)
        for pipe in (student, teacher)
    ]
    colours = [clip[0, :, 0].amax((-2, -1)).mean() for clip in clips]
    assert colours[0] > 0.7, "the circle is red after these few steps"
    assert not torch.equal(*clips)


def test_students_that_are_not_there(tmp_path: Path) -> None:
    unknown: Any = 3
    with pytest.raises(OptionError, match="wanted 2 or 4"):
        load_testbed(student=unknown)
    with pytest.raises(OptionError, match="and a folder"):
        load_testbed(tmp_path, student=4)
