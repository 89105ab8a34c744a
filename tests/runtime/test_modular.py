"""Modular pipelines of diffusers, and guiders that skip layers, with tiny components."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    UniPCMultistepScheduler,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks._helpers import AttentionProcessorRegistry
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanAttnProcessor2_0
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

import fisopt
from tests.zoo import zoo

BLOCK = LayerSkipConfig([1], fqn="blocks")
SCORES = LayerSkipConfig(
    [1], fqn="blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False
)
GUIDERS = {
    "classifier-free": lambda: ClassifierFreeGuidance(guidance_scale=4.0),
    "skip layers": lambda: SkipLayerGuidance(skip_layer_config=BLOCK, skip_layer_guidance_stop=1.0),
    "auto": lambda: AutoGuidance(auto_guidance_config=BLOCK),
    "perturbed attention": lambda: PerturbedAttentionGuidance(
        perturbed_guidance_config=SCORES, perturbed_guidance_stop=1.0
    ),
}


@cache
def pipeline() -> Any:
    model: Any = deepcopy(zoo()["wan"].model)
    del model.blocks[2:]
    pipe = WanCoreDenoiseStep().init_pipeline()
    pipe.update_components(transformer=model, scheduler=UniPCMultistepScheduler(flow_shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(pipe: Any) -> torch.Tensor:
    texts = torch.randn(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    latents: torch.Tensor = pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        height=32,
        width=32,
        num_frames=17,
        num_inference_steps=4,
        latents=torch.randn(1, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0)),
        output="latents",
    )
    return latents


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Diffusers knows how to skip the attention of Wan under its former name alone."""
    AttentionProcessorRegistry._register()
    known = AttentionProcessorRegistry._registry
    monkeypatch.setitem(known, WanAttnProcessor, known[WanAttnProcessor2_0])
    return pipeline()


def check(pipe: Any, names: list[str]) -> Any:
    """Clips of guiders through one optimised transformer; returns it."""
    fast = fisopt.optimize(pipe.transformer, [], backend="eager")
    found = []
    for name in names:
        pipe.update_components(guider=GUIDERS[name](), transformer=fast.original)
        found.append(clip(pipe))
        pipe.transformer = fast
        assert torch.equal(clip(pipe), found[-1])
        assert len(found) == 1 or not torch.equal(found[0], found[-1])
    assert {s.step for s in fisopt.summary(pipe).steps} == {0, 1, 2, 3}
    assert fisopt.restore(pipe) is pipe
    assert pipe.transformer is fast.original
    return fast


def test_guiders_that_skip_blocks(pipe: Any) -> None:
    fast = check(pipe, ["classifier-free", "skip layers", "auto"])
    assert len(fast.report.variants) == 2, "with the block and without it"


@pytest.mark.slow
def test_guiders_that_perturb_attention(pipe: Any) -> None:
    assert len(check(pipe, ["classifier-free", "perturbed attention"]).report.variants) == 2
