"""EasyAnimate 5.1: joint blocks; the latents are cut into patches frame by frame."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_easyanimate import EasyAnimateTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published

_12B = {"in_channels": 16, "out_channels": 16, "patch_size": 2, "add_norm_text_encoder": True}


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 256)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(call.dtype),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
    }


FAMILY = Family(
    name="easyanimate",
    title="EasyAnimate 5.1",
    transformer=EasyAnimateTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=lambda config: (1, config["patch_size"], config["patch_size"]),
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(Published("easyanimate-5.1-12b", "EasyAnimateV5.1-12b", _12B, 512, 512, 49),),
    tiny={
        "easyanimate": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 3,
            "mmdit_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "add_norm_text_encoder": True,
        }
    },
)
