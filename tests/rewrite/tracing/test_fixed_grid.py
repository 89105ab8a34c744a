"""A grid that was given as numbers: what it is of other inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, FrameInterleave, InputError, ModelSpec
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.fixed_grid import FixedGrid
from fisopt.rewrite.tracing.frame_dims import FrameDims, Growth
from fisopt.rewrite.tracing.inputs import Inputs
from tests.runtime.pairs import WIDTH, Layer, video

LAYOUT = TokenLayout(3, 2, 4)


def grid(dims: FrameDims, **example: Tensor) -> FixedGrid:
    return FixedGrid(LAYOUT, Inputs.of(example), dims)


def latents(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    return torch.empty(batch, 5, frames, height, width)


def test_an_argument_more_moves_no_other() -> None:
    told = grid({0: (Growth(2, 1, plane=(3, 4), scale=2),)}, video=latents(3, 4, 8))
    assert told({"video": latents(3, 4, 8)}) == (3, 2, 4)
    assert told({"audio": torch.empty(1, 9, 5, 2, 2), "video": latents(6, 2, 6)}) == (6, 1, 3)


def test_a_size_that_holds_more_than_frames_tells_them_where_nothing_else_does() -> None:
    told = grid({0: (Growth(1, 1, tokens=True, exact=False),)}, tokens=torch.empty(1, 31, 5))
    assert told({"tokens": torch.empty(2, 31 + 2 * 8, 5)}) == (5, 2, 4)
    with pytest.raises(InputError, match=r"frames of 2x4 tokens; give ModelSpec a function"):
        told({"tokens": torch.empty(1, 30, 5)})


def test_nothing_tells() -> None:
    told = grid({}, video=latents(3, 4, 8), time=torch.empty(1))
    assert told({"video": latents(3, 4, 8, batch=2), "time": torch.empty(2)}) == (3, 2, 4)
    for other in (latents(5, 4, 8), latents(3, 4, 6)):
        with pytest.raises(InputError, match="how it follows the frames is not known"):
            told({"video": other, "time": torch.empty(1)})
    with pytest.raises(InputError, match=r"video was .* give ModelSpec a function as grid"):
        grid({0: (Growth(1, 1),)}, frames=torch.empty(1, 3), video=latents(3, 4, 8))(
            {"video": latents(4, 4, 8)}
        )


class Noted(nn.Module):
    """Tokens [B, 2 F, 8] in and out, beside notes that stand in front."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, notes: Tensor | None = None, video: Any = None) -> Tensor:
        x = video if notes is None else video * notes.mean()
        for layer in self.layers:
            x = layer(x)
        return x


def test_the_same_numbers_for_another_example_are_of_that_one() -> None:
    """What was captured for other numbers of the same sizes serves no more."""
    model = Noted().eval().requires_grad_(False)
    first = fisopt.optimize(
        model, [], spec=ModelSpec(("layers.*",), (2, 1, 2)), example_inputs=video(2)
    )
    assert fisopt.optimize(first, [], example_inputs=video(3)).captures is first.captures
    again = fisopt.optimize(first, [], spec=first.spec, example_inputs=video(2))
    assert again.captures is first.captures
    with pytest.raises(CaptureError, match="no input carries the token grid 2x1x2"):
        fisopt.optimize(first, [], spec=first.spec, example_inputs=video(4))


@pytest.mark.parametrize("change", ["state", "argument", "cleared"])
def test_what_is_captured_anew_has_a_grid_of_its_own(change: str) -> None:
    """The numbers are those of the example, whatever shape is captured next."""
    model = Noted().eval().requires_grad_(False)
    spec = ModelSpec(("layers.*",), (5, 1, 2))
    sparse = FrameInterleave(blocks=":")
    fast = fisopt.optimize(model, [sparse], spec=spec, example_inputs=video(5), backend="eager")
    other = video(7)
    if change == "state":
        model.layers[0].scale = 2.0
    elif change == "argument":
        other |= {"notes": torch.randn(1, 5, WIDTH)}
    else:
        fast.clear()
    got = fast(**other)
    assert "7x1x2 tokens" in str(fast.report)
    exact = ModelSpec(("layers.*",), (7, 1, 2))
    want = fisopt.optimize(model, [sparse], spec=exact, example_inputs=other, backend="eager")
    assert torch.equal(got, want(**other))
