"""The testbed's transformer, a small ``WanTransformer3DModel``, and what it is fed.

Rotary attention knows where tokens are to each other but not where the picture ends, which a
network this small takes very long to find out. So five fixed channels that tell place and time are
joined to the three of the noisy clip, as Wan's image-to-video models are fed their first frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from fisopt.models.testbed.prompts import SLOTS, Prompt
from fisopt.models.testbed.scenes import FRAMES, SIZE

TEXT_DIM = 32
TIMESTEPS = 1000
SHIFT = 4.0
"""Flow-matching shift of the scheduler: what a clip shows is decided at high noise."""

CONFIG: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 8,
    "out_channels": 3,
    "text_dim": TEXT_DIM,
    "freq_dim": 64,
    "ffn_dim": 384,
    "num_layers": 12,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}


def build_transformer(**overrides: Any) -> WanTransformer3DModel:
    """Build an untrained transformer.

    Args:
        **overrides: ``WanTransformer3DModel`` settings that replace those of ``CONFIG``.

    Returns:
        The model in evaluation mode, freshly initialised from torch's global generator.
    """
    settings = {**CONFIG, **overrides}
    model: Any = WanTransformer3DModel(**settings)  # type: ignore[no-untyped-call]
    transformer: WanTransformer3DModel = model.eval()
    return transformer


def with_coordinates(latents: Tensor) -> Tensor:
    """Join the coordinate channels to noisy clips.

    Args:
        latents: Clips [batch, 3, frames, height, width].

    Returns:
        The transformer's ``hidden_states`` [batch, 8, frames, height, width]: the clips, two
        cosines along each side of the picture, and a ramp over time.
    """
    frames = torch.arange(latents.shape[2], device=latents.device)
    angle = (torch.arange(SIZE, device=latents.device) + 0.5) * (math.pi / SIZE)
    x = angle.cos(), (2 * angle).cos()
    channels = [*x, *(wave[:, None] for wave in x), (2 * frames / FRAMES - 1)[:, None, None]]
    shape = latents.shape[2:]
    coordinates = torch.stack([channel.expand(shape) for channel in channels])
    coordinates = coordinates.expand(len(latents), *coordinates.shape).to(latents.dtype)
    return torch.cat([latents, coordinates], 1)


def encode_prompts(prompts: Sequence[Prompt] | Tensor) -> Tensor:
    """Encode prompts as one vector a slot; nothing is learnt here.

    Args:
        prompts: Prompts, or their word indices [batch, slots]; index -1 is the null word.

    Returns:
        Embeddings [batch, slots, TEXT_DIM]; any two different words are orthogonal.
    """
    indices = (
        prompts
        if isinstance(prompts, Tensor)
        else torch.tensor([prompt.indices() for prompt in prompts]).reshape(-1, len(SLOTS))
    )
    sizes = torch.tensor([len(words) for words in SLOTS.values()])
    first = 1 + sizes.cumsum(0) - sizes
    rows = torch.where(indices < 0, 0, indices + first)
    return _hadamard(TEXT_DIM)[rows]


def null_embeddings(count: int) -> Tensor:
    """Return embeddings [count, slots, TEXT_DIM] that say nothing, for guidance."""
    return encode_prompts(torch.full((count, len(SLOTS)), -1))


def _hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
