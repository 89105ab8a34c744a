from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

import fisopt
from tests.zoo import zoo


def pipeline() -> Any:
    """One of Wan 2.2 A14B's form: two transformers take turns by noise level."""
    model = zoo()["wan"].model
    channels, width = model.config.in_channels, model.config.text_dim
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    made: Any = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=model,
        transformer_2=model,
        boundary_ratio=0.8,
    )
    made.set_progress_bar_config(disable=True)

    def encode_prompt(prompt: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        noise = [torch.Generator().manual_seed(len(text)) for text in texts]
        found = torch.stack([torch.randn(12, width, generator=each) for each in noise])
        return found, torch.zeros_like(found)

    made.encode_prompt = encode_prompt
    return made


@pytest.mark.xdist_group("wan")
@pytest.mark.usefixtures("captured_once")
def test_each_transformer_has_its_own_passes() -> None:
    pipe = pipeline()
    every = {"transformer": ["fis-faithful"], "transformer_2": [fisopt.FrameInterleave(stride=2)]}
    found = fisopt.compare(
        pipe,
        ["a cat", "a dog runs"],
        {"late": {"transformer_2": ["fis-faithful"]}, "both": every},
        steps=4,
        backend="eager",
        floors=1,
        arguments={"height": 48, "width": 64, "num_frames": 17},
    )
    names = [row.name for row in found.rows]
    assert names == ["dense", "late", "both", "dense, another kernel", "dense, in a batch"]
    assert all(value > 80 for name in names[3:] for value in found.row(name).values("psnr"))
    late, both = found.mean("late", "psnr"), found.mean("both", "psnr")
    assert late is not None
    assert both is not None
    assert late.mean > both.mean
    assert found.row("both").predicted > found.row("late").predicted > 1  # type: ignore[operator]
    assert "'transformer_2': [FrameInterleave(" in found.row("both").settings
    for name in ("dense", "late"):
        assert [stage.name for stage in found.stages if stage.configuration == name] == [
            "step 0, transformer",
            "step 1, transformer",
            "step 2, transformer_2",
            "step 3, transformer_2",
            "text, VAE and the rest",
        ]
    changed = {
        choice.transformer
        for choice in found.choices
        if choice.configuration == "late" and choice.choice != "dense"
    }
    assert changed == {"transformer_2"}
    assert pipe.transformer is pipe.transformer_2 is zoo()["wan"].model
