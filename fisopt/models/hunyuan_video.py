"""HunyuanVideo: dual-stream blocks, then single-stream blocks; text is padded and masked."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, square_patch


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 256)
    inputs = {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.float32),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "encoder_attention_mask": call.mask(text, call.dtype),
        "pooled_projections": call.normal(call.batch, config["pooled_projection_dim"]),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = call.guidance(6)
    return inputs


FAMILY = Family(
    name="hunyuan_video",
    title="HunyuanVideo",
    transformer=HunyuanVideoTransformer3DModel,
    blocks=("transformer_blocks.*", "single_transformer_blocks.*"),
    patch=square_patch,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(Published("hunyuanvideo", "HunyuanVideo", {}, 720, 1280, 129),),
    tiny={
        "hunyuan_video": {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 6, 6),
        }
    },
)
