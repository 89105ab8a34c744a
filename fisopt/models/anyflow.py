"""AnyFlow: Wan's blocks with two timesteps, between which a step jumps; frames before channels."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_anyflow import AnyFlowTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size, video_size

_1B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    text = call.length("text", 512)
    start = call.timestep(torch.float32)[:, None].repeat(1, frames)
    return {
        "hidden_states": call.normal(call.batch, frames, config["in_channels"], height, width),
        "timestep": start,
        "r_timestep": start / 2,
        "encoder_hidden_states": call.normal(call.batch, text, config["text_dim"]),
    }


FAMILY = Family(
    name="anyflow",
    title="AnyFlow",
    transformer=AnyFlowTransformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    latent=video_size("BFCHW"),
    published=(
        Published("anyflow-14b", "AnyFlow Wan2.1 14B", {}, 480, 832, 81),
        Published("anyflow-1.3b", "AnyFlow Wan2.1 1.3B", _1B, 480, 832, 81),
    ),
    tiny={
        "anyflow": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 3,
            "in_channels": 4,
            "out_channels": 4,
        }
    },
)
