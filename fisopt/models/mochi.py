"""Mochi 1: joint blocks with learned rotary frequencies; the last block drops the text."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from diffusers.models.attention_processor import MochiAttention, MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_mochi import MochiRoPE, MochiTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from fisopt.models.family import Call, Config, Family, Published, with_children


class PlainRope(MochiRoPE):
    """Rotary tables without autocast, which knows no ``meta`` device; float32 as it is."""

    def _create_rope(  # type: ignore[override]
        self, freqs: Tensor, pos: Tensor
    ) -> tuple[Tensor, Tensor]:
        angles = torch.einsum("nd,dhf->nhf", pos.float(), freqs.float())
        return angles.cos(), angles.sin()


class MaskedAttention:
    """Joint attention that masks padded text.

    The original drops padded text video by video, so that shapes follow from data. Equal where
    padding comes last, as tokenizers make it; padded rows get zeros, as in the original.
    """

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the attention's output for video and text; the arguments are the original's."""

        def heads(tokens: Tensor, norm: Any = None) -> Tensor:
            tokens = tokens.reshape(*tokens.shape[:2], attn.heads, -1)
            return tokens if norm is None else cast("Tensor", norm(tokens))

        query = heads(attn.to_q(hidden_states), attn.norm_q)
        key = heads(attn.to_k(hidden_states), attn.norm_k)
        if image_rotary_emb is not None:
            query, key = _rotate(query, *image_rotary_emb), _rotate(key, *image_rotary_emb)
        text_query = heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)
        text_key = heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)
        value = heads(attn.to_v(hidden_states))
        text_value = heads(attn.add_v_proj(encoder_hidden_states))
        query, key, value = (
            torch.cat(pair, dim=1).transpose(1, 2)  # B heads N C
            for pair in ((query, text_query), (key, text_key), (value, text_value))
        )
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        real = attention_mask.bool()
        mask = functional.pad(real, (video, 0), value=True)[:, None, None, :]
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output = output.transpose(1, 2).flatten(2, 3)
        hidden_states, encoder_hidden_states = output.split_with_sizes((video, text), dim=1)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        encoder_hidden_states = torch.where(real[..., None], encoder_hidden_states, 0)
        if hasattr(attn, "to_add_out"):
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of [B, N, heads, C]."""
    even, odd = tokens.float().reshape(*tokens.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(tokens.dtype)


def _prepare(model: MochiTransformer3DModel) -> nn.Module:
    """Make attention and rotary tables traceable; other attention processors are left alone."""
    blocks: list[nn.Module] = []
    block: Any
    for block in model.transformer_blocks:
        if isinstance(block.attn1.processor, MochiAttnProcessor2_0):
            attn = copy.copy(block.attn1)
            attn.processor = MaskedAttention()
            block = with_children(block, attn1=attn)
        blocks.append(block)
    return with_children(model, transformer_blocks=nn.ModuleList(blocks), rope=_rope(model.rope))


def _rope(rope: MochiRoPE) -> PlainRope:
    other = PlainRope()
    other.target_area = rope.target_area
    return other


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", config["max_sequence_length"])
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "timestep": call.timestep(call.dtype),
        "encoder_attention_mask": call.mask(text, torch.bool),
    }


FAMILY = Family(
    name="mochi",
    title="Mochi 1",
    transformer=MochiTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=lambda config: (1, config["patch_size"], config["patch_size"]),
    compression=lambda config: (6, 8, 8),
    inputs=_inputs,
    prepare=_prepare,
    published=(Published("mochi-1", "Mochi-1-preview", {}, 480, 848, 85),),
    tiny={
        "mochi": {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 4,
            "pooled_projection_dim": 32,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": 12,
        }
    },
)
