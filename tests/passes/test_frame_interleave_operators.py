"""FrameInterleave on blocks whose operators mix, count, address or reorder tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import FrameInterleave, ModelSpec, PassManager

GRID = (5, 2, 2)
WIDTH = 8
Mix = Callable[[Tensor], Tensor]


def mean(y: Tensor) -> Tensor:
    """The token count is a number in the graph."""
    return y + y.sum(1, keepdim=True) / y.shape[1]


def scaled(y: Tensor) -> Tensor:
    return y * (y.shape[1] / 10)


def causal(y: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(y, y, y, is_causal=True)


def spectrum(y: Tensor) -> Tensor:
    """An operator without a relation."""
    return torch.fft.fft(y, dim=1).real


def neighbours(y: Tensor) -> Tensor:
    """A convolution over tokens."""
    kernel = torch.full((WIDTH, 1, 3), 0.3)
    padded = functional.conv1d(y.transpose(1, 2), kernel, padding=1, groups=WIDTH)
    return padded.transpose(1, 2)


def windows(y: Tensor) -> Tensor:
    """Attention inside each frame."""
    tokens = GRID[1] * GRID[2]
    frames = y.unflatten(1, (-1, tokens))
    return functional.scaled_dot_product_attention(frames, frames, frames).flatten(1, 2)


def in_time(y: Tensor) -> Tensor:
    """Attention over the frames of each token."""
    tokens = GRID[1] * GRID[2]
    rows = y.unflatten(1, (-1, tokens)).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(rows, rows, rows)
    return mixed.transpose(1, 2).flatten(1, 2)


def first_frame(y: Tensor) -> Tensor:
    return y + y[:, : GRID[1] * GRID[2]].mean(1, keepdim=True)


def running(y: Tensor) -> Tensor:
    return y.cumsum(1) / 10


MIXES: dict[str, Mix] = {
    f.__name__: f
    for f in (
        mean,
        scaled,
        causal,
        spectrum,
        neighbours,
        windows,
        in_time,
        first_frame,
        running,
    )
}


class Layer(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.norm, self.out, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), mix

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.mix(self.norm(x)))


class Model(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(mix) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def looped(model: Model, x: Tensor, kv: str) -> Tensor:
    frames, tokens = GRID[0], GRID[1] * GRID[2]
    for index, layer in enumerate(model.layers):
        kept = [f for f in range(frames) if f % 2 == index % 2 or f in (0, frames - 1)]
        rows = torch.tensor([f * tokens + i for f in kept for i in range(tokens)])
        y = layer(x[:, rows]) if kv == "anchors" else layer(x)[:, rows]
        update = (y - x[:, rows]).unflatten(1, (-1, tokens))
        full = []
        for f in range(frames):
            left = max(k for k in kept if k <= f)
            right = min(k for k in kept if k >= f)
            w = (f - left) / max(right - left, 1)
            full.append((1 - w) * update[:, kept.index(left)] + w * update[:, kept.index(right)])
        x = x + torch.cat(full, 1)
    return x


@pytest.mark.parametrize("name", MIXES)
def test_block_is_a_black_box(name: str) -> None:
    torch.manual_seed(0)
    model = Model(MIXES[name]).eval().requires_grad_(False)
    x = torch.randn(1, GRID[0] * GRID[1] * GRID[2], WIDTH)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    program = fisopt.capture(model, {"video": x}, spec=spec)
    for kv in ("anchors", "all"):
        step = FrameInterleave(stride=2, blocks=":", kv=kv)  # type: ignore[arg-type]
        manager = PassManager([step])
        got = manager.run(program)(video=x)
        difference = float((got - looped(model, x, kv)).abs().max())
        assert difference <= 1e-5, (kv, difference)
        noted = "unknown operator" in str(manager.applied[0].result.notes)
        assert noted == (name == "spectrum" and kv == "all")


def routed(y: Tensor) -> Tensor:
    """An expert takes the half of the tokens that it scores highest."""
    best = y[..., 0].topk(y.shape[1] // 2, dim=1).indices[..., None].expand(-1, -1, WIDTH)
    return torch.zeros_like(y).scatter_add(1, best, y.gather(1, best).tanh())


def test_the_report_says_which_operators_see_the_anchors_alone() -> None:
    """Tokens chosen by rank are chosen of every frame, a mean is one of the anchors."""
    x = torch.randn(1, GRID[0] * GRID[1] * GRID[2], WIDTH)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)

    def notes(mix: Mix, kv: str) -> str:
        model = Model(mix).eval().requires_grad_(False)
        manager = PassManager([FrameInterleave(stride=2, blocks=":")])
        got = manager.run(fisopt.capture(model, {"video": x}, spec=spec))(video=x)
        torch.testing.assert_close(got, looped(model, x, kv), rtol=0, atol=1e-5)
        return str(manager.applied[0].result.notes)

    said = notes(routed, "all")
    assert "computed from every frame, because the positions" in said
    assert "here from" not in said
    said = notes(mean, "anchors")
    assert "here from" in said
    assert "computed from every frame" not in said


def test_reordering_by_number_is_exact() -> None:
    """Tokens are permuted inside the block by a table: numbers speak of all frames."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))

    def shuffled(y: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(*[y[:, order]] * 3)
        return mixed[:, order.argsort()]

    model = Model(shuffled).eval().requires_grad_(False)
    x = torch.randn(1, 20, WIDTH)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)

    def run() -> Any:
        program = fisopt.capture(model, {"video": x}, spec=spec)
        return PassManager([FrameInterleave(stride=2, blocks=":", kv="all")]).run(program)(video=x)

    try:
        got = run()
    except fisopt.FisoptError as error:
        assert "frame" in str(error)  # noqa: PT017 - refusing is right as well; wrong values are not
    else:
        torch.testing.assert_close(got, looped(model, x, "all"), rtol=0, atol=1e-5)
