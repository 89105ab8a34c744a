"""ChronoEdit: Wan's image to video, as reasoning frames between an image and its edit."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_chronoedit import ChronoEditTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size

_14B = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    image = call.length("image", 257)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.int64),
        "encoder_hidden_states": call.normal(call.batch, 512, config["text_dim"]),
        "encoder_hidden_states_image": call.normal(call.batch, image, config["image_dim"]),
    }


FAMILY = Family(
    name="chronoedit",
    title="ChronoEdit",
    transformer=ChronoEditTransformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(Published("chronoedit-14b", "ChronoEdit-14B", _14B, 720, 1280, 29),),
    tiny={
        "chronoedit": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 3,
            "in_channels": 10,
            "out_channels": 4,
            "image_dim": 20,
            "added_kv_proj_dim": 48,
        }
    },
)
