"""LTX-Video: latents arrive as a token sequence, their size as whole numbers."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from torch import Tensor, nn

from fisopt.models.family import (
    Call,
    Config,
    Family,
    Published,
    numbered_size,
    with_children,
)

_COMPRESSION = (8, 32, 32)
_FRAME_RATE = 25


class FramesFromTokens(nn.Module):
    """Rotary tables for as many frames as there are tokens, whatever ``num_frames`` says.

    As a whole number ``num_frames`` would be fixed by export; it equals tokens / (rows * columns).

    Args:
        rope: The original.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope
        self.training = rope.training

    def forward(
        self,
        hidden_states: Tensor,
        num_frames: int | None,
        height: int | None,
        width: int | None,
        *scale_and_coordinates: Any,
    ) -> Any:
        """Return cosines and sines; the arguments are the original's."""
        if height is not None and width is not None:
            num_frames = hidden_states.shape[1] // (height * width)
        return self.rope(hidden_states, num_frames, height, width, *scale_and_coordinates)


def _prepare(model: LTXVideoTransformer3DModel) -> nn.Module:
    return with_children(model, rope=FramesFromTokens(model.rope))


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    text = call.length("text", 128)
    return {
        "hidden_states": call.normal(call.batch, prod(call.latent), config["in_channels"]),
        "encoder_hidden_states": call.normal(call.batch, text, config["caption_channels"]),
        "timestep": call.timestep(torch.float32),
        "encoder_attention_mask": call.mask(text, torch.bool),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (_COMPRESSION[0] / _FRAME_RATE, *_COMPRESSION[1:]),
    }


FAMILY = Family(
    name="ltx",
    title="LTX-Video",
    transformer=LTXVideoTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=lambda config: (1, 1, 1),
    compression=lambda config: _COMPRESSION,
    inputs=_inputs,
    latent=numbered_size,
    prepare=_prepare,
    published=(Published("ltx-video", "LTX-Video 0.9", {}, 512, 704, 161),),
    tiny={
        "ltx": {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": 16,
            "num_layers": 4,
        }
    },
)
