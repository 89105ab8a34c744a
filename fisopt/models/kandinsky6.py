"""Kandinsky 6: video and audio in one block, each with a text of its own; latents channels last."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_kandinsky6 import Kandinsky6Transformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size, video_size
from fisopt.models.kandinsky5 import TEXT, video_inputs

_PRO = {"text_token_padding": True, "ca_rope": True, "cross_gates": True, "fix_modulation": True}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    inputs = video_inputs(config, call)
    audio = call.length("audio", 218)
    return {
        **inputs,
        "visual_rope_pos": tuple(inputs["visual_rope_pos"]),
        "audio_hidden_states": call.normal(call.batch, audio, config["in_audio_dim"]),
        "encoder_attention_mask": call.mask(call.length("text", TEXT), torch.bool),
    }


FAMILY = Family(
    name="kandinsky6",
    title="Kandinsky 6",
    transformer=Kandinsky6Transformer3DModel,
    blocks=("visual_transformer_blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    latent=video_size("BFHWC"),
    published=(Published("kandinsky-6", "Kandinsky 6.0 TI2VA", _PRO, 480, 864, 121),),
    tiny={
        "kandinsky6": {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 32,
            "model_dim": 48,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (8, 8, 8),
            "in_audio_dim": 6,
            "out_audio_dim": 6,
            **_PRO,
        }
    },
)
