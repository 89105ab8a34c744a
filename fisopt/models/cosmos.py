"""Cosmos 1, Predict 2 and Predict 2.5: text and video to world, a timestep per latent frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers import transformer_cosmos
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published, patch_size
from fisopt.spec import Grid

_7B = {"in_channels": 16}
_2B_WORLD = {
    "in_channels": 17,
    "num_attention_heads": 16,
    "rope_scale": (1.0, 3.0, 3.0),
    "extra_pos_embed_type": None,
}
_14B_WORLD = {
    **_2B_WORLD,
    "num_attention_heads": 40,
    "num_layers": 36,
    "rope_scale": (20 / 24, 2.0, 2.0),
}
_2B_25 = {
    **_2B_WORLD,
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 100352,
}
_TINY = {
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 3,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "adaln_lora_dim": 8,
    "max_size": (40, 16, 16),
    "concat_padding_mask": False,
}


def _is_world(config: Config) -> bool:
    """Tell whether given frames come with a mask, which Predict 2 and 2.5 have beside the video."""
    return bool(config["in_channels"] > config["out_channels"])


def _compression(config: Config) -> Grid:
    return (4, 8, 8) if _is_world(config) else (8, 8, 8)


def _frame_times(call: Call) -> Tensor:
    """Return a time for every latent frame, [B, 1, F, 1, 1]; the first frame is given."""
    time = call.timestep(torch.float32) / 1000
    times = time[:, None, None, None, None].repeat(1, 1, call.latent[0], 1, 1)
    times[:, :, 0] = 0.0001
    return times.to(call.dtype)


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    text = call.length("text", 512)
    world = _is_world(config)
    channels = config["in_channels"] - world
    projected = config["use_crossattn_projection"]
    features = config["crossattn_proj_in_channels"] if projected else config["text_embed_dim"]
    inputs = {
        "hidden_states": call.normal(call.batch, channels, *call.latent),
        "timestep": _frame_times(call) if world else call.timestep(call.dtype),
        "encoder_hidden_states": call.normal(call.batch, text, features),
        "fps": None if projected else 16 if world else 30,
    }
    if world:
        given = call.normal(call.batch, 1, frames, height, width) * 0
        given[:, :, 0] = 1
        inputs["condition_mask"] = given
    if config["concat_padding_mask"]:
        _, rows, columns = _compression(config)
        inputs["padding_mask"] = call.normal(1, 1, height * rows, width * columns) * 0
    return inputs


def _prepare(model: CosmosTransformer3DModel) -> nn.Module:
    """The model as it is, if it can run: it resizes its padding mask with torchvision."""
    config: Any = model.config
    if config.concat_padding_mask and not hasattr(transformer_cosmos, "transforms"):
        raise InputError(
            "CosmosTransformer3DModel needs torchvision for its padding mask and found none; "
            "install torchvision, or build the model with concat_padding_mask=False"
        )
    return model


FAMILY = Family(
    name="cosmos",
    title="Cosmos",
    transformer=CosmosTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=patch_size,
    compression=_compression,
    inputs=_inputs,
    prepare=_prepare,
    published=(
        Published("cosmos-predict2.5-2b", "Cosmos-Predict2.5-2B", _2B_25, 704, 1280, 93),
        Published("cosmos-predict2-2b", "Cosmos-Predict2-2B-Video2World", _2B_WORLD, 704, 1280, 93),
        Published(
            "cosmos-predict2-14b", "Cosmos-Predict2-14B-Video2World", _14B_WORLD, 704, 1280, 93
        ),
        Published("cosmos-1.0-7b", "Cosmos-1.0-Diffusion-7B-Text2World", _7B, 704, 1280, 121),
    ),
    tiny={
        "cosmos": {**_TINY, "in_channels": 4},
        "cosmos_world": {**_TINY, "in_channels": 5, "extra_pos_embed_type": None},
    },
)
