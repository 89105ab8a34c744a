"""HunyuanVideo-Framepack: a window of latent frames behind a history at three scales."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackTransformer3DModel,
)
from diffusers.utils.peft_utils import apply_lora_scale
from torch import Tensor, nn

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published, square_patch, with_children

_HISTORY = {"latents_history_4x": 16, "latents_history_2x": 2, "latents_clean": 2}


class MaskedFramepack(HunyuanVideoFramepackTransformer3DModel):
    """The same model with a mask over padded text, made by comparing.

    The original counts each text and writes its mask in a loop, or cuts the text of a single
    video, so that shapes follow from data. Equal for text whose padding comes last.
    """

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        image_embeds: Tensor,
        indices_latents: Tensor,
        guidance: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        **history: Tensor,
    ) -> Any:
        """Return the velocity; the arguments are the original's."""
        batch, _, frames, height, width = hidden_states.shape
        sizes = (frames, height // 2, width // 2)
        video = self.x_embedder(hidden_states)
        embed: Any = self.clean_x_embedder
        pack: Any = self._pack_history_states
        project: Any = self.image_projection
        names = ("latents_clean", "latents_history_2x", "latents_history_4x")
        if missing := [name for name in names if history.get(name) is None]:
            raise InputError(f"Framepack: got no {', '.join(missing)}, wanted the whole history")
        past = embed(*(history[name] for name in names))
        tables = [
            self.rope(indices, height=height, width=width, device=video.device)
            for indices in (indices_latents, *(history[f"indices_{name}"] for name in names))
        ]
        own = video.shape[1]
        video, rotary = pack(video, *past, *tables, *sizes[1:])
        temb, _ = self.time_text_embed(timestep, pooled_projections, guidance)
        text = self.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)
        text = torch.cat([project(image_embeds), text], dim=1)
        padding = encoder_attention_mask.shape[1] - encoder_attention_mask.sum(1)
        total = video.shape[1] + text.shape[1]
        place = torch.arange(total, device=video.device)
        mask = (place < total - padding[:, None])[:, None, None]  # B 1 1 N
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            video, text = block(video, text, temb, mask, rotary)
        video = self.proj_out(self.norm_out(video[:, -own:], temb))
        video = video.reshape(batch, *sizes, -1, 1, 2, 2).permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = video.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=video) if return_dict else (video,)


def _prepare(model: HunyuanVideoFramepackTransformer3DModel) -> nn.Module:
    other = with_children(model)
    other.__class__ = MaskedFramepack
    return other


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text, image = call.length("text", 256), call.length("image", 729)
    frames, height, width = call.latent
    indices = torch.arange(sum(_HISTORY.values()) + frames, device=call.device)
    *past, own = torch.split_with_sizes(indices, (*_HISTORY.values(), frames))
    inputs = {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(torch.float32),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "encoder_attention_mask": call.mask(text, torch.int64),
        "pooled_projections": call.normal(call.batch, config["pooled_projection_dim"]),
        "image_embeds": call.normal(call.batch, image, config["image_proj_dim"]),
        "indices_latents": own,
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = call.guidance(9)
    for (name, length), index in zip(_HISTORY.items(), past, strict=True):
        inputs[name] = call.normal(call.batch, config["in_channels"], length, height, width)
        inputs[f"indices_{name}"] = index
    return inputs


_I2V = {"has_image_proj": True, "has_clean_x_embedder": True}

FAMILY = Family(
    name="framepack",
    title="HunyuanVideo Framepack",
    transformer=HunyuanVideoFramepackTransformer3DModel,
    blocks=("transformer_blocks.*", "single_transformer_blocks.*"),
    patch=square_patch,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    prepare=_prepare,
    published=(Published("framepack-i2v", "FramePack I2V HY", _I2V, 640, 640, 33),),
    tiny={
        "framepack": {
            **_I2V,
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "image_proj_dim": 12,
            "rope_axes_dim": (4, 6, 6),
        }
    },
)
