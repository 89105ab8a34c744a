"""A small video transformer whose forward reads something of every kind that code can read."""

from __future__ import annotations

import types
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

GRID = (5, 2, 3)
WIDTH = 8

factor = 1.0
"""A number that a function reads by name."""


def inner(x: Tensor) -> Tensor:
    """Called by what forward calls."""
    return x * 1.5


def helper(x: Tensor) -> Tensor:
    """Called by name."""
    return inner(x) * factor


def doubled(x: Tensor) -> Tensor:
    return x * 2


def scaled_by(scale: float) -> Any:
    def scaled(x: Tensor) -> Tensor:
        return x * scale

    return scaled


elsewhere = types.ModuleType("elsewhere_of_tests")
elsewhere.bias = 0.25  # type: ignore[attr-defined]


class Processor:
    """What a layer holds that is no layer."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.strength


class OtherProcessor(Processor):
    def __call__(self, x: Tensor) -> Tensor:
        return x - self.strength


class Block(nn.Module):
    shared: ClassVar[dict[str, float]] = {"offset": 0.5}

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.processor, self.rule = Processor(0.5), scaled_by(3.0)
        self.kind, self.numbers = "plain", [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        q = self.mix(x)
        x = x + functional.scaled_dot_product_attention(q, q, x)
        y = self.rule(helper(self.processor(self.mlp(x))))
        y = getattr(self, f"do_{self.kind}")(y)
        return x + functional.silu(y) * self.numbers[1] + self.shared["offset"] + elsewhere.bias

    def do_plain(self, x: Tensor) -> Tensor:
        return x + 0.125

    def do_signed(self, x: Tensor) -> Tensor:
        return -x


class Small(nn.Module):
    """Video [B, F, H, W, features] in and out."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.register_buffer("scale", torch.tensor(2.0))
        self.positions = torch.arange(GRID[1] * GRID[2] * WIDTH).reshape(-1, WIDTH) / 100

    def forward(self, video: Tensor) -> Tensor:
        frames = video.flatten(2, 3) + self.positions
        x = frames.flatten(1, 2) * self.scale + torch.tensor([0.5])
        for block in self.blocks:
            x = block(x)
        return x.reshape(video.shape)


def grid(inputs: Any) -> tuple[int, int, int]:
    _, frames, height, width, _ = inputs["video"].shape
    return frames, height, width


def inputs(frames: int = GRID[0]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"video": torch.randn(2, frames, *GRID[1:], WIDTH, generator=generator)}


def small(**options: Any) -> Small:
    torch.manual_seed(0)
    return Small(**options).eval().requires_grad_(False)
