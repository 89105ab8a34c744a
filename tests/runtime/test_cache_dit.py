"""cache-dit: it exchanges the forward of a transformer, which is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

import fisopt
from fisopt import InputError

cache_dit = pytest.importorskip("cache_dit")
NAMED = r"forward that its class does not define: cache_dit\..* add StepCache to the passes"


def pipeline() -> Any:
    model = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        num_layers=2,
        rope_max_seq_len=32,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=8,
    ).eval()
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe = WanPipeline(**held, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(pipe: Any) -> torch.Tensor:
    frames: torch.Tensor = pipe(
        prompt_embeds=torch.ones(1, 3, 8),
        guidance_scale=1.0,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=1,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames
    return frames


def test_before_and_after() -> None:
    pipe = pipeline()
    want = clip(pipe)
    cache_dit.enable_cache(pipe)
    with pytest.raises(InputError, match=NAMED):
        fisopt.optimize(pipe, [], backend="eager")
    cache_dit.disable_cache(pipe)
    fisopt.optimize(pipe, [], backend="eager")
    cache_dit.enable_cache(pipe)
    with pytest.raises(InputError, match=NAMED):
        clip(pipe)
    cache_dit.disable_cache(pipe)
    assert torch.equal(clip(pipe), want)
