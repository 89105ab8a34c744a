"""Wan 2.1 and 2.2: text to video, image to video, and the 5B form with a timestep per token."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from fisopt.models.family import Call, Config, Family, Published, patch_size
from fisopt.spec import Grid

_TI2V_CHANNELS = 48
_I2V = {"in_channels": 36}
_I2V_CLIP = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
_FLF = {**_I2V_CLIP, "pos_embed_seq_len": 514}
_1B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_5B = {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": _TI2V_CHANNELS,
    "out_channels": _TI2V_CHANNELS,
}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
}


def _is_ti2v(config: Config) -> bool:
    """Tell whether latents are of the 16x VAE, which only the 5B form uses."""
    return bool(config["in_channels"] == _TI2V_CHANNELS)


def _compression(config: Config) -> Grid:
    return (4, 16, 16) if _is_ti2v(config) else (4, 8, 8)


def _video(config: Config, call: Call) -> Tensor:
    """Return latents; for image to video with a mask and the image's latents beside them."""
    latents = call.normal(call.batch, config["in_channels"], *call.latent)
    image = config["out_channels"] or config["in_channels"]
    if config["in_channels"] > 2 * image:
        known = latents[:, image:-image]
        known[:, :, 0] = 1
        known[:, :, 1:] = 0
    return latents


def _timestep(config: Config, call: Call) -> Tensor:
    """Return a timestep per video, or per token with the first frame given, hence at zero."""
    if not _is_ti2v(config):
        return call.timestep(torch.int64)
    frames, rows, columns = (
        cells // patch for cells, patch in zip(call.latent, patch_size(config), strict=True)
    )
    timestep = call.timestep(torch.float32)[:, None].repeat(1, frames * rows * columns)
    timestep[:, : rows * columns] = 0
    return timestep


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    with_image = config["image_dim"] is not None  # then the model cuts off the last 512 tokens
    text = 512 if with_image else call.length("text", 512)
    inputs = {
        "hidden_states": _video(config, call),
        "timestep": _timestep(config, call),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_dim"]),
    }
    if with_image:
        images, tokens = call.batch, call.length("image", 257)
        if config["pos_embed_seq_len"] is not None:  # first and last frame, one after the other
            images, tokens = 2 * call.batch, config["pos_embed_seq_len"] // 2
        inputs["encoder_hidden_states_image"] = call.normal(images, tokens, config["image_dim"])
    return inputs


FAMILY = Family(
    name="wan",
    title="Wan 2.1 / 2.2",
    transformer=WanTransformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=_compression,
    inputs=_inputs,
    published=(
        Published("wan2.2-a14b", "Wan2.2-T2V-A14B", {}, 720, 1280, 81),
        Published("wan2.2-i2v-a14b", "Wan2.2-I2V-A14B", _I2V, 720, 1280, 81),
        Published("wan2.2-ti2v-5b", "Wan2.2-TI2V-5B", _5B, 704, 1280, 121),
        Published("wan2.1-14b", "Wan2.1-T2V-14B", {}, 720, 1280, 81),
        Published("wan2.1-1.3b", "Wan2.1-T2V-1.3B", _1B, 480, 832, 81),
        Published("wan2.1-i2v-14b-720p", "Wan2.1-I2V-14B-720P", _I2V_CLIP, 720, 1280, 81),
        Published("wan2.1-i2v-14b-480p", "Wan2.1-I2V-14B-480P", _I2V_CLIP, 480, 832, 81),
        Published("wan2.1-flf2v-14b", "Wan2.1-FLF2V-14B-720P", _FLF, 720, 1280, 81),
    ),
    tiny={
        "wan": {**_TINY, "in_channels": 4, "out_channels": 4},
        "wan_i2v": {**_TINY, "in_channels": 10, "out_channels": 4},
        "wan_i2v_clip": {
            **_TINY,
            "in_channels": 10,
            "out_channels": 4,
            "image_dim": 20,
            "added_kv_proj_dim": 48,
        },
        "wan_ti2v": {**_TINY, "in_channels": _TI2V_CHANNELS, "out_channels": _TI2V_CHANNELS},
    },
)
