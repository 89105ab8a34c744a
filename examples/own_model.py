"""A video transformer that no adapter knows: name its blocks and its grid, compare with dense.

python examples/own_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt

GRID = (9, 4, 6)
"""Latent frames, rows and columns of tokens."""


class Block(nn.Module):
    """Attention and a feed-forward layer over all tokens of a clip, [B, N, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x) + time).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Denoiser(nn.Module):
    """Latents [B, C, F, H, W] and a timestep [B] to a velocity of the latents' shape."""

    def __init__(self, channels: int = 4, width: int = 64, layers: int = 6) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Linear(channels, width), nn.Linear(width, channels)
        self.time = nn.Linear(1, width)
        self.layers = nn.ModuleList(Block(width, 4) for _ in range(layers))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        x = self.embed(latents.flatten(2).transpose(1, 2))
        time = self.time(timestep[:, None, None] / 1000)
        for layer in self.layers:
            x = layer(x, time)
        return self.unembed(x).transpose(1, 2).reshape(latents.shape)


def main() -> None:
    torch.manual_seed(0)
    model = Denoiser().eval()
    latents, timestep = torch.randn(1, 4, *GRID), torch.tensor([500.0])
    spec = fisopt.ModelSpec(
        blocks=("layers.*",),
        grid=lambda call: tuple(call["latents"].shape[2:]),  # any size, read from the call
    )
    for stride in (2, 3):
        passes = [fisopt.FrameInterleave(stride=stride)]
        fast = fisopt.optimize(model, passes, spec=spec, backend="eager")
        with torch.no_grad():
            dense, found = model(latents, timestep), fast(latents, timestep)
        error = float((found - dense).norm() / dense.norm())
        print(f"stride {stride}: {error:.3f} from the dense result, relative L2")
        print(fast.report)


if __name__ == "__main__":
    main()
