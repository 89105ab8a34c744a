"""Mochi 1: joint blocks with learned rotary frequencies; the last block drops the text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", config["max_sequence_length"])
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "timestep": call.timestep(call.dtype),
        "encoder_attention_mask": call.mask(text, torch.bool),
    }


FAMILY = Family(
    name="mochi",
    title="Mochi 1",
    transformer=MochiTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=lambda config: (1, config["patch_size"], config["patch_size"]),
    compression=lambda config: (6, 8, 8),
    inputs=_inputs,
    published=(Published("mochi-1", "Mochi-1-preview", {}, 480, 848, 85),),
    tiny={
        "mochi": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 4,
            "pooled_projection_dim": 32,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": 12,
        }
    },
)
