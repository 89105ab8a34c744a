"""A model that is given the keys of the past and returns its own is exported as any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fisopt

FRAMES, INNER, WIDTH = 5, 6, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        keys, values = (torch.cat(both, 1) for both in zip(past, (k, v), strict=True))
        return x + self.out(nn.functional.scaled_dot_product_attention(q, keys, values)), k, v


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, tokens: Tensor, past: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        made: list[Tensor] = []
        for block, held in zip(self.blocks, past, strict=True):
            tokens, *keys = block(tokens, held)
            made += keys
        return tokens, *made


def call() -> dict[str, object]:
    held = [(torch.randn(1, 7 * INNER, WIDTH), torch.randn(1, 7 * INNER, WIDTH)) for _ in range(2)]
    return {"tokens": torch.randn(1, FRAMES * INNER, WIDTH), "past": held}


@torch.no_grad()
def test_it_returns_what_the_module_does(tmp_path: Path) -> None:
    spec = fisopt.ModelSpec(blocks=("blocks.*",), grid=(FRAMES, 2, 3))
    sparse = [fisopt.FrameInterleave(2, blocks=":")]
    module = fisopt.optimize(Causal().eval(), sparse, call(), spec, backend="eager")
    loaded = fisopt.load(fisopt.export(module, tmp_path / "causal.pt2"))
    given = call()
    want, got = module(**given), loaded(**given)
    assert [tuple(x.shape) for x in got] == [(1, FRAMES * INNER, WIDTH)] * 5
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not torch.equal(got[1], loaded(**call())[1])
