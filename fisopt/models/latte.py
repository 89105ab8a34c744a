"""Latte: blocks over the tokens of a frame alternate with blocks over the frames of a token."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.latte_transformer_3d import LatteTransformer3DModel

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published

_CONFIG = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "sample_size": 64,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "video_length": 16,
}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames = call.latent[0]
    if frames not in (1, config["video_length"]):
        raise InputError(
            f"latte: num_frames: got {frames}, wanted {config['video_length']}, the length of "
            f"the model's table of frame positions (video_length in its config), or 1"
        )
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(
            call.batch, call.length("text", 120), config["caption_channels"]
        ),
        "timestep": call.timestep(torch.int64),
        "enable_temporal_attentions": True,
    }


FAMILY = Family(
    name="latte",
    title="Latte",
    transformer=LatteTransformer3DModel,
    blocks=("transformer_blocks.*", "temporal_transformer_blocks.*"),
    patch=lambda config: (1, config["patch_size"], config["patch_size"]),
    compression=lambda config: (1, 8, 8),
    inputs=_inputs,
    published=(Published("latte-1", "Latte-1", _CONFIG, 512, 512, 16),),
    tiny={
        "latte": {
            **_CONFIG,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_size": 8,
            "caption_channels": 16,
            "video_length": 5,
        }
    },
)
