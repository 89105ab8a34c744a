"""A model that keeps something for its next call: an error, unless that call does not need it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, ModelSpec

SPEC = ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))


class Keeper(nn.Module):
    """A layer of tokens that keeps something on itself."""

    held: Any
    room: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.held, self.count = nn.Linear(4, 4), None, 0
        self.register_buffer("room", torch.zeros(2, 90, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) + self.kept(x)

    def kept(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Keys(Keeper):
    """Joins what it has, nothing at first."""

    def kept(self, x: Tensor) -> Tensor:
        self.held = x if self.held is None else torch.cat([self.held, x], 1)
        return self.held.mean(1, keepdim=True)


class Nested(Keeper):
    """The same in a dict of a list."""

    def kept(self, x: Tensor) -> Tensor:
        before = self.held[0]["x"] if self.held else x
        self.held = [{"x": x * 2}]
        return before


class Counted(Keeper):
    """Writes where it has stopped."""

    def kept(self, x: Tensor) -> Tensor:
        end = self.count + x.shape[1]
        self.room[:, self.count : end] = x
        self.count = end
        return self.room[:, :end].mean(1, keepdim=True)


class Overflown(Counted):
    """There is room for one call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("room", torch.zeros(2, 50, 4))


class Positions(Keeper):
    """Makes a table for a length, once."""

    def kept(self, x: Tensor) -> Tensor:
        if self.held is None or len(self.held) != x.shape[1]:
            self.held = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / 100
        return self.held  # type: ignore[no-any-return]


class Recorder(Keeper):
    """Keeps what nobody reads, and counts its calls."""

    def kept(self, x: Tensor) -> Tensor:
        self.held, self.count = x * 2, self.count + 1
        return self.held  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(self, kind: type[Keeper]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def captured(kind: type[Keeper]) -> tuple[Model, fisopt.Program]:
    model = Model(kind).eval().requires_grad_(False)
    return model, fisopt.capture(model, {"video": torch.randn(2, 30, 4)}, spec=SPEC)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Keys, "a later call reads what an earlier one has made"),
        (Nested, "a later call reads what an earlier one has made"),
        (Counted, "each call runs other operators"),
        (Overflown, "a second call fails on what the first has left"),
    ],
)
def test_what_the_next_call_needs_is_an_error(kind: type[Keeper], why: str) -> None:
    with pytest.raises(CaptureError, match=rf"forward sets layers\.. *.*, and {why}.*argument"):
        captured(kind)


@pytest.mark.parametrize("kind", [Positions, Recorder])
def test_what_it_does_not_need_is_said(kind: type[Keeper]) -> None:
    with pytest.warns(UserWarning, match="the captured graph does not"):
        model, program = captured(kind)
    assert model.layers[0].held is None
    assert model.layers[0].count == 0
    video = torch.randn(2, 30, 4)
    for _ in range(2):
        torch.testing.assert_close(program(video=video), model(video))


def test_a_buffer_that_grows_is_an_error() -> None:
    class Grown(Keeper):
        def kept(self, x: Tensor) -> Tensor:
            self.room = torch.cat([self.room, x], 1)
            return self.room.mean(1, keepdim=True)

    with pytest.raises(CaptureError, match=r"replaces buffer layers\.0\.room .*\(2, 90, 4\)"):
        captured(Grown)
