"""HunyuanVideo 1.5: dual-stream blocks over two texts and an image, merged by their masks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from torch import Tensor, nn

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published, square_patch

_T2V_720P = {"task_type": "t2v", "target_size": 960}
_I2V_720P = {"task_type": "i2v", "target_size": 960}
_T2V_480P = {"task_type": "t2v"}
_I2V_480P = {"task_type": "i2v"}
_TINY = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "text_embed_2_dim": 12,
    "image_embed_dim": 20,
    "rope_axes_dim": (4, 6, 6),
}


class TensorPrologue(nn.Module):
    """A HunyuanVideo 1.5 transformer whose forward takes no decision on data.

    The original asks whether the image embeddings are all zero, and sorts the tokens of each
    prompt by boolean indexing; here both are tensor operations, with equal output. Submodules
    are the original's own, under their own names.

    Args:
        model: The transformer.
    """

    rope: nn.Module
    time_embed: nn.Module
    x_embedder: nn.Module
    context_embedder: nn.Module
    context_embedder_2: nn.Module
    image_embedder: nn.Module
    cond_type_embed: nn.Embedding
    transformer_blocks: nn.ModuleList
    norm_out: nn.Module
    proj_out: nn.Module

    def __init__(self, model: HunyuanVideo15Transformer3DModel) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.config: Config = model.config
        self.training = model.training

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep_r: Tensor | None = None,
        encoder_hidden_states_2: Tensor | None = None,
        encoder_attention_mask_2: Tensor | None = None,
        image_embeds: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """Predict as the original does; the arguments are the original's."""
        if encoder_hidden_states_2 is None or encoder_attention_mask_2 is None:
            raise InputError("encoder_hidden_states_2 and its mask: got None, wanted tensors")
        if image_embeds is None:
            raise InputError("image_embeds: got None, wanted a tensor, of zeros for no image")
        patches = square_patch(self.config)
        grid = [size // patch for size, patch in zip(hidden_states.shape[2:], patches, strict=True)]
        rotary = self.rope(hidden_states)
        temb = self.time_embed(timestep, timestep_r=timestep_r)
        video = self.x_embedder(hidden_states)
        context, mask = self._context(
            self.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask),
            encoder_attention_mask.bool(),
            self.context_embedder_2(encoder_hidden_states_2),
            encoder_attention_mask_2.bool(),
            image_embeds,
        )
        for block in self.transformer_blocks:
            video, context = block(video, context, temb, mask, rotary)
        video = self.proj_out(self.norm_out(video, temb))
        video = video.unflatten(2, (-1, *patches)).unflatten(1, grid)  # B F H W C f h w
        video = video.permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = video.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=video) if return_dict else (video,)

    def _context(
        self,
        text: Tensor,
        text_mask: Tensor,
        text_2: Tensor,
        text_mask_2: Tensor,
        image_embeds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Join image, second text and text per prompt: valid tokens first, then the others.

        Returns:
            Tokens [B, T, C] and their mask [B, T]. An image of zeros is no image: its tokens
            are invalid, yet keep their type embedding, while invalid text is zero.
        """
        kinds = self.cond_type_embed.weight
        image = self.image_embedder(image_embeds)
        no_image = (image_embeds == 0).all()
        image = torch.where(no_image, torch.zeros_like(image), image) + kinds[2]
        text = torch.where(text_mask[..., None], text + kinds[0], 0)
        text_2 = torch.where(text_mask_2[..., None], text_2 + kinds[1], 0)
        tokens = torch.cat([image, text_2, text], dim=1)
        image_mask = ~no_image.expand(image.shape[:2])
        mask = torch.cat([image_mask, text_mask_2, text_mask], dim=1)
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
        return tokens, mask.gather(1, order)


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text, text_2 = call.length("text", 1000), call.length("text_2", 256)
    image_embeds = call.normal(call.batch, call.length("image", 729), config["image_embed_dim"])
    hidden_states = call.normal(call.batch, config["in_channels"], *call.latent)
    known = hidden_states[:, config["out_channels"] :]  # latents of the image, then a mask
    if config["task_type"] == "t2v":
        image_embeds.zero_()
        known.zero_()
    else:
        known[:, :, 1:] = 0
        known[:, -1, 0] = 1
    return {
        "hidden_states": hidden_states,
        "image_embeds": image_embeds,
        "timestep": call.timestep(call.dtype),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "encoder_attention_mask": call.mask(text, call.dtype),
        "encoder_hidden_states_2": call.normal(call.batch, text_2, config["text_embed_2_dim"]),
        "encoder_attention_mask_2": call.mask(text_2, call.dtype),
    }


FAMILY = Family(
    name="hunyuan_video15",
    title="HunyuanVideo 1.5",
    transformer=HunyuanVideo15Transformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=square_patch,
    compression=lambda config: (4, 16, 16),
    inputs=_inputs,
    prepare=TensorPrologue,
    published=(
        Published("hunyuanvideo-1.5", "HunyuanVideo-1.5 720p T2V", _T2V_720P, 720, 1280, 121),
        Published("hunyuanvideo-1.5-i2v", "HunyuanVideo-1.5 720p I2V", _I2V_720P, 720, 1280, 121),
        Published("hunyuanvideo-1.5-480p", "HunyuanVideo-1.5 480p T2V", _T2V_480P, 480, 848, 121),
        Published(
            "hunyuanvideo-1.5-i2v-480p", "HunyuanVideo-1.5 480p I2V", _I2V_480P, 480, 848, 121
        ),
    ),
    tiny={
        "hunyuan_video15": {**_TINY, "task_type": "t2v"},
        "hunyuan_video15_i2v": {**_TINY, "task_type": "i2v"},
    },
)
