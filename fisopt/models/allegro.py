"""Allegro: cross-attention blocks, rotary tables and positions as arguments."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from diffusers.models.transformers.transformer_allegro import AllegroTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, square_patch


def _rotary(config: Config, call: Call) -> tuple[Any, Any]:
    """Return tables per axis, and the position of every token along each axis."""
    grid = [cells // patch for cells, patch in zip(call.latent, square_patch(config), strict=True)]
    scale = tuple(config[f"interpolation_scale_{axis}"] for axis in "thw")
    tables = get_3d_rotary_pos_embed_allegro(
        embed_dim=config["attention_head_dim"],
        crops_coords=((0, 0), (grid[1], grid[2])),
        grid_size=(grid[1], grid[2]),
        temporal_size=grid[0],
        interpolation_scale=scale,
        device=call.device,
    )[:3]
    axes = [torch.arange(size, device=call.device) for size in grid]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, 1, prod(grid))
    return tables, tuple(positions)


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 512)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(call.batch, text, config["caption_channels"]),
        "encoder_attention_mask": call.mask(text, torch.int64),
        "timestep": call.timestep(torch.float32),
        "image_rotary_emb": _rotary(config, call),
    }


FAMILY = Family(
    name="allegro",
    title="Allegro",
    transformer=AllegroTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=square_patch,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    causal=False,
    published=(Published("allegro", "Allegro", {}, 720, 1280, 88),),
    tiny={
        "allegro": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": 16,
            "num_layers": 4,
        }
    },
)
