"""SkyReels-V2: Wan's blocks; diffusion forcing gives every latent frame a timestep of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Transformer3DModel
from torch import Tensor

from fisopt.models.family import Call, Config, Family, Published, patch_size

_14B = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
_1B_DF = {
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
    "inject_sample_info": True,
}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "in_channels": 4,
    "out_channels": 4,
}


def _frame_times(call: Call) -> Tensor:
    """Return a timestep for every latent frame; the first frames are further denoised."""
    frames = call.latent[0]
    steps = call.timestep(torch.float32)[:, None]
    share = torch.linspace(0.5, 1, frames, device=call.device)
    return (steps * share).to(torch.int64)


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 512)
    inputs = {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_dim"]),
    }
    if not config["inject_sample_info"]:
        return {**inputs, "timestep": call.timestep(torch.int64)}
    forced = {"enable_diffusion_forcing": True, "fps": [1]}  # one rate for all videos
    return {**inputs, **forced, "timestep": _frame_times(call)}


FAMILY = Family(
    name="skyreels_v2",
    title="SkyReels-V2",
    transformer=SkyReelsV2Transformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(
        Published("skyreels-v2-14b-540p", "SkyReels-V2-T2V-14B-540P", _14B, 544, 960, 97),
        Published("skyreels-v2-14b-720p", "SkyReels-V2-T2V-14B-720P", _14B, 720, 1280, 121),
        Published("skyreels-v2-df-1.3b-540p", "SkyReels-V2-DF-1.3B-540P", _1B_DF, 544, 960, 97),
    ),
    tiny={
        "skyreels_v2": _TINY,
        "skyreels_v2_df": {**_TINY, "inject_sample_info": True},
    },
)
