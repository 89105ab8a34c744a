"""Wan Animate: Wan's blocks with a reference image as the first frame, a pose video and a face."""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel
from torch import nn

from fisopt.models.family import (
    Call,
    Config,
    Family,
    Published,
    patch_size,
    with_children,
)


def _prepare(model: WanAnimateTransformer3DModel) -> nn.Module:
    """Let all faces be encoded at once: by the piece, there are more operators for more frames."""
    other: Any = with_children(model)
    frozen: Any = FrozenDict
    config = {**model.config, "motion_encoder_batch_size": sys.maxsize}
    other._internal_dict = frozen(config)
    result: nn.Module = other
    return result


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    image, face = call.length("image", 257), config["motion_encoder_size"]
    pose = (frames - 1, height, width)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.int64),
        "encoder_hidden_states": call.normal(call.batch, 512, config["text_dim"]),
        "encoder_hidden_states_image": call.normal(call.batch, image, config["image_dim"]),
        "pose_hidden_states": call.normal(call.batch, config["latent_channels"], *pose),
        "face_pixel_values": call.normal(call.batch, 3, 4 * (frames - 2) + 1, face, face),
    }


FAMILY = Family(
    name="wan_animate",
    title="Wan 2.2 Animate",
    transformer=WanAnimateTransformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    beside=1,
    prepare=_prepare,
    published=(
        Published(
            "wan2.2-animate-14b",
            "Wan2.2-Animate-14B",
            {"added_kv_proj_dim": 5120},
            720,
            1280,
            77,
        ),
    ),
    tiny={
        "wan_animate": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "in_channels": 12,
            "latent_channels": 4,
            "out_channels": 4,
            "image_dim": 20,
            "added_kv_proj_dim": 48,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        }
    },
)
