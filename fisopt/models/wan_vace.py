"""Wan VACE: beside the blocks of Wan, blocks over a control video whose hints are added to them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size

_1B = {
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
    "vace_layers": [*range(0, 30, 2)],
}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 512)
    layers = len(config["vace_layers"])
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.int64),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_dim"]),
        "control_hidden_states": call.normal(call.batch, config["vace_in_channels"], *call.latent),
        "control_hidden_states_scale": torch.ones(layers, dtype=call.dtype, device=call.device),
    }


FAMILY = Family(
    name="wan_vace",
    title="Wan 2.1 VACE",
    transformer=WanVACETransformer3DModel,
    blocks=("vace_blocks.*", "blocks.*"),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(
        Published("wan2.1-vace-14b", "Wan2.1-VACE-14B", {}, 720, 1280, 81),
        Published("wan2.1-vace-1.3b", "Wan2.1-VACE-1.3B", _1B, 480, 832, 81),
    ),
    tiny={
        "wan_vace": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 3,
            "in_channels": 4,
            "out_channels": 4,
            "vace_layers": [0, 2],
            "vace_in_channels": 6,
        }
    },
)
