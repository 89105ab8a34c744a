"""Models that run other operators on other numbers of tokens: errors say which, and at which line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import FrameInterleave, ModelSpec, TileAttention, TileMask
from fisopt.errors import CaptureError, PreconditionError

FRAMES, INNER, WIDTH = 8, 4, 8
SPEC = ModelSpec(blocks=("layers.*",), grid=(FRAMES, 2, 2))
attend = functional.scaled_dot_product_attention


class Ranges(nn.Module):
    """Chunks of queries, each of which sees its own keys and those before."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.qkv, self.chunk = nn.Linear(WIDTH, 3 * WIDTH), frames * INNER

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixed(*self.qkv(x).chunk(3, dim=-1))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = [(a, a + self.chunk) for a in range(0, q.shape[1], self.chunk)]
        return torch.cat([attend(q[:, a:b], k[:, :b], v[:, :b]) for a, b in ends], dim=1)


class Masked(Ranges):
    """The same as one attention."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunks = torch.arange(q.shape[1]) // self.chunk
        return attend(q, k, v, attn_mask=chunks[:, None] >= chunks)


class Model(nn.Module):
    def __init__(self, kind: type[Ranges], frames: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(kind(frames) for _ in range(3))
        self.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def call() -> dict[str, Tensor]:
    return {"video": torch.randn(1, FRAMES * INNER, WIDTH, generator=torch.manual_seed(0))}


def optimized(model: nn.Module, step: Any) -> Any:
    return fisopt.optimize(model, passes=[step], example_inputs=call(), spec=SPEC, backend="eager")


WHERE = r"test_lines\.py:\d+: return torch\.cat\(\[attend\(q\[:, a:b\]"


def test_a_block_that_cannot_be_cut() -> None:
    said = (
        r"to layers\.1, layers\.2: .*scaled_dot_product_attention\.default in the place of "
        rf"aten\.slice\.Tensor, at \S*{WHERE}.* attn_mask"
    )
    with pytest.raises(PreconditionError, match=said):
        optimized(Model(Ranges, 2), FrameInterleave(stride=2))


@pytest.mark.parametrize(
    "step", [FrameInterleave(stride=2, scope="attention"), TileAttention(TileMask(2))], ids=repr
)
def test_attention_to_ranges(step: Any) -> None:
    said = rf"no self-attention .* 4 have others, .* the first at \S*{WHERE}.* attn_mask"
    with pytest.raises(PreconditionError, match=said):
        optimized(Model(Ranges, 2), step)


def test_a_model_that_cannot_be_captured() -> None:
    """A chunk of one frame: every other number of frames has another number of chunks."""
    said = rf"different operators at 8 and 9 frames; .* in the place of .*{WHERE}.* attn_mask"
    with pytest.raises(CaptureError, match=said):
        fisopt.capture(Model(Ranges, 1), call(), spec=SPEC)


def test_what_the_errors_tell_to_write() -> None:
    """One attention with a mask computes the same, and is made sparse."""
    ranges, masked = Model(Ranges, 2), Model(Masked, 2)
    torch.testing.assert_close(masked(**call()), ranges(**call()))
    report = str(optimized(masked, FrameInterleave(stride=2)).report)
    assert "2 of 3 blocks sparse" in report
    assert "every frame" not in report
