"""CogVideoX: the 2B form with a sin-cos table, the 5B form with rotary tables as an argument."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import (
    CogVideoXPatchEmbed,
    get_3d_rotary_pos_embed,
    get_3d_sincos_pos_embed,
)
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor, nn

from fisopt.models.family import Call, Config, Family, Published, video_size, with_children
from fisopt.spec import Grid

_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 16,
    "num_layers": 4,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 17,
    "max_text_seq_length": 12,
}


class SinCosPatchEmbed(nn.Module):
    """The patch embedding of the 2B form, its table of positions made from the video's size.

    The original fills a table in place, which export takes for a constant.

    Args:
        embed: The original; its projections are used, under their own names.
    """

    proj: nn.Module
    text_proj: nn.Module

    def __init__(self, embed: CogVideoXPatchEmbed) -> None:
        super().__init__()
        for name, child in embed.named_children():
            self.add_module(name, child)
        self.width: int = embed.embed_dim
        self.scales = (embed.spatial_interpolation_scale, embed.temporal_interpolation_scale)
        self.training = embed.training

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """Return text tokens and then video tokens, [B, T + F * H * W, C]."""
        batch, frames = image_embeds.shape[:2]
        text = self.text_proj(text_embeds)
        video = self.proj(image_embeds.flatten(0, 1))  # B*F C H W
        rows, columns = video.shape[2:]
        video = video.flatten(2).transpose(1, 2).reshape(batch, -1, self.width)
        positions = get_3d_sincos_pos_embed(
            self.width, (columns, rows), frames, *self.scales, device=video.device
        )
        return torch.cat([text, video + positions.flatten(0, 1).to(video.dtype)], dim=1)


def _prepare(model: CogVideoXTransformer3DModel) -> nn.Module:
    """Replace the patch embedding where it holds a sin-cos table."""
    embed = model.patch_embed
    if not embed.use_positional_embeddings or embed.patch_size_t is not None:
        return model
    return with_children(model, patch_embed=SinCosPatchEmbed(embed))


def _patch(config: Config) -> Grid:
    return (config["patch_size_t"] or 1, config["patch_size"], config["patch_size"])


def _crop(rows: int, columns: int, base_rows: int, base_columns: int) -> tuple[Any, Any]:
    """Return corners of the grid scaled to fit the centre of the grid of training."""
    scale = min(base_rows / rows, base_columns / columns)
    fit_rows, fit_columns = round(rows * scale), round(columns * scale)
    top = round((base_rows - fit_rows) / 2)
    left = round((base_columns - fit_columns) / 2)
    return (top, left), (top + fit_rows, left + fit_columns)


def _rotary(config: Config, call: Call) -> tuple[Tensor, Tensor]:
    """Return cosines and sines per token, as the pipeline makes them."""
    frames, rows, columns = (
        cells // patch for cells, patch in zip(call.latent, _patch(config), strict=True)
    )
    base = (
        config["sample_height"] // config["patch_size"],
        config["sample_width"] // config["patch_size"],
    )
    if config["patch_size_t"] is None:
        table: dict[str, Any] = {"crops_coords": _crop(rows, columns, *base)}
    else:
        table = {"crops_coords": None, "grid_type": "slice", "max_size": base}
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=config["attention_head_dim"],
        grid_size=(rows, columns),
        temporal_size=frames,
        device=call.device,
        **table,
    )
    return cos, sin


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    inputs: dict[str, Any] = {
        "hidden_states": call.normal(call.batch, frames, config["in_channels"], height, width),
        "encoder_hidden_states": call.normal(
            call.batch, config["max_text_seq_length"], config["text_embed_dim"]
        ),
        "timestep": call.timestep(torch.int64),
    }
    if config["use_rotary_positional_embeddings"]:
        inputs["image_rotary_emb"] = _rotary(config, call)
    return inputs


FAMILY = Family(
    name="cogvideox",
    title="CogVideoX",
    transformer=CogVideoXTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=_patch,
    compression=lambda config: (config["temporal_compression_ratio"], 8, 8),
    inputs=_inputs,
    latent=video_size("BFCHW"),
    prepare=_prepare,
    published=(
        Published("cogvideox-5b", "CogVideoX-5B", _5B, 480, 720, 49),
        Published("cogvideox-2b", "CogVideoX-2B", {}, 480, 720, 49),
    ),
    tiny={
        "cogvideox_2b": _TINY,
        "cogvideox_5b": {**_TINY, "use_rotary_positional_embeddings": True},
    },
)
