"""A plain causal video transformer that writes its keys and values into caches that it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS = 16, 2


def heads(x: Tensor) -> Tensor:
    """[B, N, C] to [B, h, N, D]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention over what the cache holds up to the new tokens, then a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out, self.mlp = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
        y, end = self.norm(x), past + x.shape[1]
        keys[:, past:end] = self.k(y)
        values[:, past:end] = self.v(y)
        return self.rest(x, self.q(y), keys[:, :end], values[:, :end])

    def rest(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm(x)).tanh()


class CachedDiT(nn.Module):
    """Tokens [B, N, 4] in and out; counts its calls in a buffer."""

    calls: Tensor

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.embed, self.unembed = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, video: Tensor, caches: list[dict[str, Tensor]], past: int) -> Tensor:
        self.calls.add_(1)
        x = self.embed(video)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache["k"], cache["v"], past)
        return self.unembed(x)


def build() -> CachedDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CachedDiT().eval().requires_grad_(False)


def inputs(frames: int, inner: int, past: int = 6, room: int = 50) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    caches = [{name: draw(2, room, WIDTH) for name in ("k", "v")} for _ in range(2)]
    return {"video": draw(2, frames * inner, 4), "caches": caches, "past": past}
