"""A model of few operators and what is optimised of it, cheap enough to make for each test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisopt import ModelSpec, OptimizedModule
from fisopt.runtime.settings import Settings

WIDTH = 8
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))


def activate(x: Tensor) -> Tensor:
    """A function that layers find in their module."""
    return functional.silu(x)


class Options:
    """What a layer holds beside layers, as a processor or a config."""

    def __init__(self) -> None:
        self.gain = 1.0


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale, self.options = 1.0, Options()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(*self.split(x))
        return x + self.scale * self.options.gain * activate(self.mlp(y))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).chunk(3, dim=-1)


class Small(nn.Module):
    """Tokens [B, 2 F, 8] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return self.out(video)


def build() -> Small:
    """A model with weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval().requires_grad_(False)


def video(frames: int = 2, batch: int = 1) -> dict[str, Any]:
    """Inputs of a seed."""
    generator = torch.Generator().manual_seed(0)
    return {"video": torch.randn(batch, 2 * frames, WIDTH, generator=generator)}


class Pair:
    """A model and what is optimised of it without passes: equal to the bit, or refused."""

    def __init__(self, passes: Any = (), spec: ModelSpec = SPEC, **settings: Any) -> None:
        self.model, self.inputs = build(), video()
        how = Settings(**{"backend": "eager"} | settings)
        self.fast = OptimizedModule(self.model, passes, spec, settings=how)
        self.before = self.dense()

    def dense(self) -> Tensor:
        """What the original returns now."""
        with torch.no_grad():
            result: Tensor = self.model(**self.inputs)
        return result

    def check(self, *, changed: bool = True) -> None:
        """The optimised module gives what the original gives now."""
        want = self.dense()
        torch.testing.assert_close(self.fast(**self.inputs), want, rtol=0, atol=1e-6)
        assert changed == (not torch.allclose(want.float(), self.before, atol=1e-5))
