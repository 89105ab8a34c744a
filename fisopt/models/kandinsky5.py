"""Kandinsky 5: latents with channels last, blocks for the text and blocks for the video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Transformer3DModel

from fisopt.models.family import Call, Config, Family, Published, patch_size, video_size

_LITE = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "model_dim": 1792,
    "ff_dim": 7168,
    "visual_cond": True,
}
_PRO = {
    **_LITE,
    "model_dim": 4096,
    "ff_dim": 16384,
    "num_text_blocks": 4,
    "num_visual_blocks": 60,
    "axes_dims": (32, 48, 48),
    "time_dim": 1024,
}


TEXT = 512
"""Tokens of the text."""


def video_inputs(config: Config, call: Call) -> dict[str, Any]:
    """Return the video, its text, its timestep and its places."""
    channels, text = config["in_visual_dim"], call.length("text", TEXT)
    if config["visual_cond"]:  # the latents of an image and a mask lie beside those of the video
        channels = 2 * channels + 1
    sizes = (cells // cut for cells, cut in zip(call.latent, patch_size(config), strict=True))
    return {
        "hidden_states": call.normal(call.batch, *call.latent, channels),
        "encoder_hidden_states": call.normal(call.batch, text, config["in_text_dim"]),
        "pooled_projections": call.normal(call.batch, config["in_text_dim2"]),
        "timestep": call.timestep(call.dtype),
        "visual_rope_pos": [torch.arange(size, device=call.device) for size in sizes],
    }


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    _, height, width = call.latent
    return {
        **video_inputs(config, call),
        "text_rope_pos": torch.arange(call.length("text", TEXT), device=call.device),
        "scale_factor": (1, 2, 2) if all(60 <= x <= 106 for x in (height, width)) else _LARGE,
        "return_dict": True,
    }


_LARGE = (1, 3.16, 3.16)
"""Scales of the rotary tables outside of 480 to 854 pixels."""

FAMILY = Family(
    name="kandinsky5",
    title="Kandinsky 5",
    transformer=Kandinsky5Transformer3DModel,
    blocks=("visual_transformer_blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    latent=video_size("BFHWC"),
    published=(
        Published("kandinsky-5-lite", "Kandinsky 5.0 T2V Lite", _LITE, 512, 768, 121),
        Published("kandinsky-5-pro", "Kandinsky 5.0 T2V Pro", _PRO, 512, 768, 121),
    ),
    tiny={
        "kandinsky5": {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 32,
            "model_dim": 48,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 3,
            "axes_dims": (8, 8, 8),
            "visual_cond": True,
        }
    },
)
