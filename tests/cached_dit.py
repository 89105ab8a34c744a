"""A plain causal video transformer that writes its keys and values into caches that it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS = 16, 2
WRITES = ("slice", "rows", "positions", "stacked", "grown", "set", "rolled", "returned")
"""A slice; rows by a count; rows by an index; a slice of one of two; a slice of all that is there;
the past and what is new, set in the dict, or returned; a window that moves on."""


def heads(x: Tensor) -> Tensor:
    """[B, N, C] to [B, h, N, D]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention over what the cache holds up to the new tokens, then a feed-forward layer."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write = write
        self.q, self.k, self.v, self.out, self.mlp = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, caches: dict[str, Tensor], past: int) -> Any:
        y = self.norm(x)
        if self.write in ("set", "returned"):
            k, v = (torch.cat([caches[n][:, :past], f(y)], 1) for n, f in self.pair)
            if self.write == "returned":
                return self.rest(x, self.q(y), k, v), k, v
            caches["k"], caches["v"] = k, v
        else:
            k, v = (self.held(caches[n], f(y), past) for n, f in self.pair)
        return self.rest(x, self.q(y), k, v)

    @property
    def pair(self) -> tuple[tuple[str, nn.Module], tuple[str, nn.Module]]:
        return ("k", self.k), ("v", self.v)

    def held(self, cache: Tensor, new: Tensor, past: int) -> Tensor:
        """Write new rows into a cache; return what it holds up to them."""
        end = past + new.shape[1]
        if self.write == "rows":
            cache.index_copy_(1, torch.arange(past, end), new)
        elif self.write == "positions":
            cache[:, torch.arange(past, end)] = new
        elif self.write == "stacked":
            both = cache.view(1, *cache.shape)
            both[0][:, past:end].copy_(new)
        elif self.write == "grown":
            held = torch.cat([cache[:, :past], new], 1)
            cache[:, past:end].copy_(held[:, past:])
            return held
        elif self.write == "rolled":
            cache[:, : -new.shape[1]] = cache[:, new.shape[1] :].clone()
            cache[:, -new.shape[1] :] = new
            return cache
        else:
            cache[:, past:end] = new
        return cache[:, :end]

    def rest(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm(x)).tanh()


class CachedDiT(nn.Module):
    """Tokens [B, N, 4] in and out; counts its calls in a buffer."""

    calls: Tensor

    def __init__(self, write: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(write) for _ in range(2))
        self.embed, self.unembed = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, video: Tensor, caches: list[dict[str, Tensor]], past: int) -> Any:
        self.calls.add_(1)
        x, held = self.embed(video), []
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, past)
            if isinstance(x, tuple):
                x, *pair = x
                held.append(pair)
        return (self.unembed(x), held) if held else self.unembed(x)


def build(write: str = "slice") -> CachedDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CachedDiT(write).eval().requires_grad_(False)


def inputs(frames: int, inner: int, past: int = 6, room: int = 50) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    caches = [{name: draw(2, room, WIDTH) for name in ("k", "v")} for _ in range(2)]
    return {"video": draw(2, frames * inner, 4), "caches": caches, "past": past}
