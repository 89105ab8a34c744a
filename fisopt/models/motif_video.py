"""Motif-Video: joint blocks as those of HunyuanVideo, an image and a mask beside the latents."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_motif_video import MotifVideoTransformer3DModel

from fisopt.models.family import Call, Config, Family, Published, square_patch


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    text = call.length("text", 512)
    return {
        "hidden_states": call.normal(call.batch, config["in_channels"], *call.latent),
        "timestep": call.timestep(call.dtype),
        "encoder_hidden_states": call.normal(call.batch, text, config["text_embed_dim"]),
        "encoder_attention_mask": call.mask(text, call.dtype),
    }


FAMILY = Family(
    name="motif_video",
    title="Motif-Video",
    transformer=MotifVideoTransformer3DModel,
    blocks=("transformer_blocks.*", "single_transformer_blocks.*"),
    patch=square_patch,
    compression=lambda config: (4, 8, 8),
    inputs=_inputs,
    published=(Published("motif-video", "Motif-Video", {}, 736, 1280, 121),),
    tiny={
        "motif_video": {
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 2,
            "num_single_layers": 2,
            "text_embed_dim": 16,
            "rope_axes_dim": (8, 8, 8),
            "mlp_ratio": 2.0,
        }
    },
)
