"""LTX-2: video and audio side by side in every block; only the video has frames to spare."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from torch import Tensor

from fisopt.models.family import Call, Config, Family, Published, numbered_size

_FRAME_RATE = 24.0
_TINY = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "cross_attention_dim": 48,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "caption_channels": 16,
    "num_layers": 2,
}


def _video_times(config: Config, call: Call) -> Tensor:
    """Return where each token begins and ends in seconds, rows and columns: [B, 3, N, 2]."""
    cells = [torch.arange(size, dtype=torch.float32, device=call.device) for size in call.latent]
    starts = torch.stack(torch.meshgrid(*cells, indexing="ij")).flatten(1)
    scales = config["vae_scale_factors"]
    seconds, rows, columns = (
        torch.stack([start, start + 1], -1) * scale
        for start, scale in zip(starts, scales, strict=True)
    )
    seconds = (seconds + config["causal_offset"] - scales[0]).clamp(min=0) / _FRAME_RATE
    return torch.stack([seconds, rows, columns]).expand(call.batch, -1, -1, -1).contiguous()


def _audio_times(config: Config, call: Call, length: int) -> Tensor:
    """Return where each audio token begins and ends in seconds: [B, 1, N, 2]."""
    starts = torch.arange(length, dtype=torch.float32, device=call.device)
    scale = config["audio_scale_factor"]
    mel = torch.stack([starts, starts + 1], -1) * scale + config["causal_offset"] - scale
    seconds: Tensor = mel.clamp(min=0) * config["audio_hop_length"] / config["audio_sampling_rate"]
    return seconds.expand(call.batch, 1, -1, -1).contiguous()


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    frames, height, width = call.latent
    text, audio = call.length("text", 1024), call.length("audio", 126)
    timestep, mask = call.timestep(torch.float32), call.mask(text, torch.int64)
    caption, own = config["caption_channels"], config["audio_in_channels"]
    return {
        "hidden_states": call.normal(call.batch, prod(call.latent), config["in_channels"]),
        "audio_hidden_states": call.normal(call.batch, audio, own),
        "encoder_hidden_states": call.normal(call.batch, text, caption),
        "audio_encoder_hidden_states": call.normal(call.batch, text, caption),
        "timestep": timestep,
        "sigma": timestep,
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": _FRAME_RATE,
        "audio_num_frames": audio,
        "video_coords": _video_times(config, call),
        "audio_coords": _audio_times(config, call, audio),
    }


FAMILY = Family(
    name="ltx2",
    title="LTX-2",
    transformer=LTX2VideoTransformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=lambda config: (1, 1, 1),
    compression=lambda config: tuple(config["vae_scale_factors"]),
    inputs=_inputs,
    latent=numbered_size,
    published=(Published("ltx-2", "LTX-2 19B", {}, 512, 768, 121),),
    tiny={"ltx2": _TINY},
)
