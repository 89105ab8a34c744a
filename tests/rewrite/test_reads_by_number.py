"""Blocks that read frames by their number, which speaks of all frames and not of the anchors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fisopt
from fisopt import FrameInterleave, ModelSpec
from fisopt.passes.frame_interleave import anchor_frames
from tests.rewrite.test_kinds_of_blocks import (
    FRAMES,
    GRID,
    INNER,
    WIDTH,
    Plain,
    call,
    rows,
    spread,
)


class Reads(Plain):
    """Adds to every token what some frames of the block's input hold."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, WIDTH)

    def seen(self, x: Tensor) -> Tensor:
        frames = x.unflatten(1, (-1, INNER))
        parts = [
            frames[:, 1],
            x[:, INNER : 2 * INNER] * 2,
            x.split(INNER, 1)[1] * 3,
            frames[:, ::2].mean(1) * 4,
            x[:, :INNER] * 5,
            x[:, -INNER:] * 6,
        ]
        return self.read(sum(parts)).mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.seen(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(4, WIDTH), nn.ModuleList([Reads()])

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        return self.layers[0](self.embed(video)) + text.mean()


def test_frames_that_are_read_by_number_are_those_of_the_clip() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model().eval().requires_grad_(False)
    program = fisopt.capture(model, call(), spec=ModelSpec(("layers.*",), GRID))
    got = FrameInterleave(blocks=":")(program).program(**call())
    x, kept = model.embed(call()["video"]), anchor_frames(FRAMES, 2, 0)
    layer, few = model.layers[0], x[:, rows(kept)]
    x = x + spread(Plain.forward(layer, few) - few, kept) + layer.seen(x)
    torch.testing.assert_close(got, x + call()["text"].mean(), atol=1e-5, rtol=0)
