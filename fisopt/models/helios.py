"""Helios: chunks of nine latent frames, behind a history at three scales in the same sequence."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_helios import (
    HeliosRotaryPosEmbed,
    HeliosTransformer3DModel,
)
from torch import Tensor, nn

from fisopt.models.family import Call, Config, Family, Published, patch_size, with_children

_HISTORY = {"long": 16, "mid": 2, "short": 2}


class PlainRope(HeliosRotaryPosEmbed):
    """Rotary tables without autocast, which knows no ``meta`` device; float32 as it is."""

    def get_frequency_batched(self, freqs_base: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, [D, B, F, H, W]."""
        angles = freqs_base.float()[:, None, None, None, None] * pos.float()
        angles = angles.repeat_interleave(2, dim=0)
        return angles.cos(), angles.sin()


def _prepare(model: HeliosTransformer3DModel) -> nn.Module:
    rope: Any = with_children(model.rope)
    rope.__class__ = PlainRope
    return with_children(model, rope=rope)


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    text = call.length("text", 512)
    indices = torch.arange(sum(_HISTORY.values()) + frames, device=call.device)[None]
    *past, own = torch.split_with_sizes(indices, (*_HISTORY.values(), frames), dim=1)
    inputs: dict[str, Any] = {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.int64),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_dim"]),
        "indices_hidden_states": own,
    }
    for (name, length), index in zip(_HISTORY.items(), past, strict=True):
        size = (call.batch, config["in_channels"], length, height, width)
        inputs[f"indices_latents_history_{name}"] = index
        inputs[f"latents_history_{name}"] = call.normal(*size)
    return inputs


FAMILY = Family(
    name="helios",
    title="Helios",
    transformer=HeliosTransformer3DModel,
    blocks=("blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    prepare=_prepare,
    published=(Published("helios", "Helios", {}, 384, 640, 33),),
    tiny={
        "helios": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 3,
            "rope_dim": (8, 8, 8),
        }
    },
)
