"""A chunk-wise causal video transformer: the testbed's trained blocks over a cache of keys.

Each call is given a chunk of latent frames.  Its queries see the keys of all earlier chunks and of
the chunk itself, which are written behind them, as in CausVid and Self-Forcing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fisopt import ModelSpec
from fisopt.models import testbed

SIDE = 2
"""Rows and columns of tokens."""
INNER = SIDE * SIDE
BLOCKS = 3
HEADS, WIDTH = 2, 64


class Cached:
    """Attention of a chunk to a cache, in the place of diffusers' own processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        cos, sin, held, past = rotary_emb
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v
        query, key = attn.norm_q(query), attn.norm_k(key)
        shape = (HEADS, -1)
        query, key = (turned(x.unflatten(2, shape), cos, sin) for x in (query, key))
        start = past * INNER
        end = start + query.shape[1]
        held["k"][:, start:end] = key
        held["v"][:, start:end] = value(hidden_states).unflatten(2, shape)
        keys, values = held["k"][:, :end], held["v"][:, :end]
        heads = (x.transpose(1, 2) for x in (query, keys, values))
        y = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](y))  # type: ignore[no-any-return]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


class CausalWan(nn.Module):
    """Latents [B, 8, F, 8, 8] in, [B, F * tokens, channels of a patch] out.

    ``caches`` holds for every block ``k`` and ``v``, [B, room, heads, width]; ``past`` counts the
    frames that are in them.
    """

    def __init__(self, wan: Any) -> None:
        super().__init__()
        self.rope, self.patch_embedding = wan.rope, wan.patch_embedding
        self.condition_embedder, self.proj_out = wan.condition_embedder, wan.proj_out
        self.blocks = wan.blocks[:BLOCKS]
        for block in self.blocks:
            block.attn1.set_processor(Cached())

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, caches: list[Any], past: int
    ) -> Tensor:
        frames, tokens = latents.shape[2], latents.shape[2] * INNER
        longer = latents.new_zeros(1, latents.shape[1], past + frames, *latents.shape[3:])
        cos, sin = (table[:, -tokens:] for table in self.rope(longer))
        x = self.patch_embedding(latents).flatten(2).transpose(1, 2)
        _, time, text, _ = self.condition_embedder(timestep, text, None)
        time = time.unflatten(1, (6, -1))
        for block, held in zip(self.blocks, caches, strict=True):
            x = block(x, text, time, (cos, sin, held, past))
        return self.proj_out(x)  # type: ignore[no-any-return]


@cache
def build() -> CausalWan:
    return CausalWan(testbed.load_testbed().transformer).eval().requires_grad_(False)


SPEC = ModelSpec(blocks=("blocks.*",), grid=lambda call: (call["latents"].shape[2], SIDE, SIDE))


def caches(frames: int, batch: int = 1) -> list[dict[str, Tensor]]:
    """Empty caches with room for so many frames."""
    room = (batch, frames * INNER, HEADS, WIDTH)
    return [{"k": torch.zeros(room), "v": torch.zeros(room)} for _ in range(BLOCKS)]


def chunk(frames: int, past: int, held: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The arguments of a call for a chunk of a clip."""
    generator = torch.Generator().manual_seed(past)
    batch = held[0]["k"].shape[0]
    noise = torch.randn(batch, 3, frames, 4 * SIDE, 4 * SIDE, generator=generator)
    place = torch.randn(batch, 5, 1, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(9))
    return {
        "latents": torch.cat([noise, place.expand(-1, -1, frames, -1, -1)], 1),
        "timestep": torch.full((batch,), 700.0),
        "text": testbed.encode_prompts(testbed.sample_prompts(batch, seed=1)),
        "caches": held,
        "past": past,
    }
