"""SANA-Video: linear attention, and a convolution over time in every feed-forward."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_sana_video import SanaVideoTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size

_2B = {"mlp_ratio": 3.0}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 300)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(call.batch, text, config["caption_channels"]),
        "encoder_attention_mask": call.mask(text, torch.int64),
        "timestep": call.timestep(torch.float32),
    }


FAMILY = Family(
    name="sana_video",
    title="SANA-Video",
    transformer=SanaVideoTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(Published("sana-video-2b-480p", "SANA-Video 2B 480p", _2B, 480, 832, 81),),
    tiny={
        "sana_video": {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": 16,
            "mlp_ratio": 2.0,
        }
    },
)
