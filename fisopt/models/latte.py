"""Latte: blocks over the tokens of a frame alternate with blocks over the frames of a token."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.latte_transformer_3d import LatteTransformer3DModel
from torch import Tensor, nn

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published

_CONFIG = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "sample_size": 64,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "video_length": 16,
}


class AnyLength(nn.Module):
    """A Latte transformer whose table of frame positions is as long as the video.

    The original adds a table of ``video_length`` rows, which fixes the frame count of an export.
    Output is equal where the original takes the video. Submodules are the original's own.

    Args:
        model: The transformer.
    """

    pos_embed: nn.Module
    adaln_single: nn.Module
    caption_projection: nn.Module
    transformer_blocks: nn.ModuleList
    temporal_transformer_blocks: nn.ModuleList
    norm_out: nn.Module
    proj_out: nn.Module

    def __init__(self, model: LatteTransformer3DModel) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.scale_shift_table = model.scale_shift_table
        self.config: Config = model.config
        self.training = model.training

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        enable_temporal_attentions: bool = True,
        return_dict: bool = True,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """Predict as the original does; the arguments are the original's."""
        batch, _, frames, height, width = hidden_states.shape
        patch = self.config["patch_size"]
        video = self.pos_embed(hidden_states.transpose(1, 2).flatten(0, 1))  # B*F N C
        temb, embedded = self.adaln_single(
            timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            batch_size=batch,
            hidden_dtype=video.dtype,
        )
        text = _repeat(self.caption_projection(encoder_hidden_states), frames)
        temb_frames, temb_tokens = _repeat(temb, frames), _repeat(temb, video.shape[1])
        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for index, (spatial, temporal) in enumerate(blocks):
            video = spatial(video, None, text, encoder_attention_mask, temb_frames, None, None)
            if not enable_temporal_attentions:
                continue
            video = video.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)  # B*N F C
            if index == 0 and frames > 1:
                video = video + _frame_positions(video).to(video.dtype)
            video = temporal(video, None, None, None, temb_tokens, None, None)
            video = video.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)  # B*F N C
        shift, scale = (self.scale_shift_table + _repeat(embedded, frames)[:, None]).chunk(2, dim=1)
        video = self.norm_out(video) * (1 + scale) + shift
        video = self.proj_out(video)  # B*F N h*w*C
        grid = (frames, height // patch, width // patch)
        video = video.reshape(batch, *grid, patch, patch, -1)  # B F H W h w C
        video = video.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return Transformer2DModelOutput(sample=video) if return_dict else (video,)


def _repeat(rows: Tensor, times: int) -> Tensor:
    """Return [B * times, ...]: every row of [B, ...] that often, one after the other."""
    return rows[:, None].expand(-1, times, *rows.shape[1:]).flatten(0, 1)


def _frame_positions(video: Tensor) -> Tensor:
    """Return sines and cosines of the frame numbers, [1, F, C], for tokens [B * N, F, C]."""
    frames = torch.arange(video.shape[1], device=video.device)
    table = get_1d_sincos_pos_embed_from_grid(  # type: ignore[no-untyped-call]
        video.shape[2], frames, output_type="pt"
    )
    return cast("Tensor", table).float()[None]


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames = call.latent[0]
    if frames not in (1, config["video_length"]):
        raise InputError(
            f"latte: num_frames: got {frames}, wanted {config['video_length']}, the length of "
            f"the model's table of frame positions (video_length in its config), or 1"
        )
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(
            call.batch, call.length("text", 120), config["caption_channels"]
        ),
        "timestep": call.timestep(torch.int64),
        "enable_temporal_attentions": True,
    }


FAMILY = Family(
    name="latte",
    title="Latte",
    transformer=LatteTransformer3DModel,
    blocks=("transformer_blocks.*", "temporal_transformer_blocks.*"),
    patch=lambda config: (1, config["patch_size"], config["patch_size"]),
    compression=lambda config: (1, 8, 8),
    inputs=_inputs,
    prepare=AnyLength,
    published=(Published("latte-1", "Latte-1", _CONFIG, 512, 512, 16),),
    tiny={
        "latte": {
            **_CONFIG,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_size": 8,
            "caption_channels": 16,
            "video_length": 5,
        }
    },
)
