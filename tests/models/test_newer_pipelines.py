"""Pipelines of newer families, of tiny random components: what they pass, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    AnyFlowPipeline,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2VPipeline,
    SanaVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    UniPCMultistepScheduler,
)

import fisopt
from tests.zoo import forms

HEIGHT, WIDTH, FRAMES, TEXT = 64, 96, 17, 12


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: its class, scheduler, other components, and what it is called with."""

    made: Any
    scheduler: Any
    components: tuple[str, ...]
    text: str
    call: Mapping[str, Any] = field(default_factory=lambda: {"num_frames": FRAMES})
    sides: tuple[str, ...] = ("", "negative_")
    masked: bool = False
    pooled: str | None = None

    def build(self, form: str) -> Any:
        empty = dict.fromkeys(self.components)
        pipe = self.made(**empty, scheduler=self.scheduler(), transformer=forms()[form].model)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Any) -> torch.Tensor:
        torch.manual_seed(0)
        config = pipe.transformer.config
        given: dict[str, Any] = {}
        for side in self.sides:
            embeds = torch.randn(1, TEXT, config[self.text])
            if self.pooled is None:
                given[f"{side}prompt_embeds"] = embeds
            else:
                given[f"{side}prompt_embeds_qwen"] = embeds
                given[f"{side}prompt_embeds_clip"] = torch.randn(1, config[self.pooled])
                given[f"{side}prompt_cu_seqlens"] = torch.tensor([0, TEXT], dtype=torch.int32)
            if self.masked:
                given[f"{side}prompt_attention_mask"] = torch.ones(1, TEXT, dtype=torch.int64)
        output = pipe(
            **given,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=2,
            output_type="latent",
            **self.call,
        )
        frames: torch.Tensor = output.frames
        return frames


T5 = ("tokenizer", "text_encoder", "vae")
PIPELINES = {
    "anyflow": Pipeline(
        AnyFlowPipeline, FlowMapEulerDiscreteScheduler, T5, "text_dim", sides=("",)
    ),
    "kandinsky5": Pipeline(
        Kandinsky5T2VPipeline,
        FlowMatchEulerDiscreteScheduler,
        (*T5, "text_encoder_2", "tokenizer_2"),
        "in_text_dim",
        pooled="in_text_dim2",
    ),
    "sana_video": Pipeline(
        SanaVideoPipeline,
        FlowMatchEulerDiscreteScheduler,
        T5,
        "caption_channels",
        {"frames": FRAMES, "negative_prompt": None, "use_resolution_binning": False},
        masked=True,
    ),
    "skyreels_v2": Pipeline(SkyReelsV2Pipeline, UniPCMultistepScheduler, T5, "text_dim"),
    "skyreels_v2_df": Pipeline(
        SkyReelsV2DiffusionForcingPipeline,
        UniPCMultistepScheduler,
        T5,
        "text_dim",
        {"num_frames": FRAMES, "base_num_frames": FRAMES, "prompt": None},
    ),
}


@pytest.mark.parametrize("form", PIPELINES)
def test_a_pipeline_calls_as_the_adapter_says_and_is_equal(form: str) -> None:
    case, pipeline = forms()[form], PIPELINES[form]
    pipe = pipeline.build(form)
    calls: list[dict[str, Any]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        calls.append(kwargs | dict(zip(("hidden_states", "timestep"), args, strict=False)))

    handle = case.model.register_forward_pre_hook(note, with_kwargs=True)
    want = pipeline.run(pipe)
    handle.remove()
    grid = case.spec.grid_of(calls[0])
    batch = calls[0]["hidden_states"].shape[0]
    for name, value in case.inputs(*grid, batch=batch).items():
        passed = calls[0].get(name)
        if isinstance(value, torch.Tensor):
            assert passed.shape == value.shape, name
            assert passed.is_floating_point() == value.is_floating_point() or name == "timestep"
    fisopt.optimize(pipe, passes=[], backend="eager")
    torch.testing.assert_close(pipeline.run(pipe), want, rtol=0, atol=1e-5)
    fisopt.restore(pipe)
