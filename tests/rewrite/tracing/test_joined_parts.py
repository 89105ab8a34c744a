"""Parts of the tokens that are computed in one way are computed whole, and others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import ModelSpec
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.tracer import Tracer

aten = torch.ops.aten
FRAMES, INNER, WIDTH = 5, 4, 6
N = FRAMES * INNER
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Blocks that apply a form to tokens and to two rows of modulation."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(form) for _ in range(2))

    def forward(self, video: Tensor, a: Tensor, b: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video, a, b)
        return video


class Block(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.linear = form, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x + self.form(self.linear(x), a, b)


def split(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    first, rest = x.split([INNER, x.shape[1] - INNER], dim=1)
    return torch.cat([first * (1 + a) + b, rest * (1 + b) + b], dim=1)


def three(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    ends = (0, INNER, 2 * INNER, x.shape[1])
    rows = (a, b, a + b)
    cuts = zip(ends, ends[1:], rows, strict=False)
    return torch.cat([x[:, i:j] * row for i, j, row in cuts], dim=1)


def gated(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.sin()
    parts = (slice(0, INNER), slice(INNER, None))
    return torch.cat([x[:, i] + y[:, i] * row for i, row in zip(parts, (a, b), strict=True)], 1)


def heads(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y, a, b = (t.unflatten(-1, (2, 3)) for t in (x, a, b))
    return torch.cat([y[:, :INNER] * a, y[:, INNER:] * b], 1).flatten(2)


def displaced(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([x[:, :INNER] * a, x[:, 1 : 1 + x.shape[1] - INNER] * b], 1)


JOINED: dict[str, Form] = {
    "slices": lambda x, a, b: torch.cat([x[:, :INNER] * a, x[:, INNER:] * b], 1),
    "split": split,
    "three": three,
    "two values": gated,
    "rows without a batch": lambda x, a, b: torch.cat(
        [x[:, :INNER] * a[0, 0], x[:, INNER:] * b[0, 0]], 1
    ),
    "a dimension more": heads,
}
LEFT: dict[str, Form] = {
    "cut alone": lambda x, a, b: torch.cat([x[:, :INNER], x[:, INNER:]], 1) * a,
    "other operators": lambda x, a, b: torch.cat([x[:, :INNER] * a, x[:, INNER:] + b], 1),
    "other numbers": lambda x, a, b: torch.cat([x[:, :INNER] * 2, x[:, INNER:] * 3], 1),
    "exchanged": lambda x, a, b: torch.cat([x[:, INNER:] * a, x[:, :INNER] * b], 1),
    "other positions": displaced,
    "two sources": lambda x, a, b: torch.cat([x[:, :INNER] * a, x.sin()[:, INNER:] * b], 1),
    "not pointwise": lambda x, a, b: torch.cat(
        [x[:, :INNER].softmax(1), x[:, INNER:].softmax(1)], 1
    ),
    "scalars of another type": lambda x, a, b: torch.cat(
        [x[:, :INNER] * a.double().sum(), x[:, INNER:] * b.double().sum()], 1
    ),
}


def inputs(frames: int = FRAMES) -> dict[str, Any]:
    made = torch.Generator().manual_seed(0)
    sizes = {"video": frames * INNER, "a": 1, "b": 1}
    return {name: torch.randn(2, n, WIDTH, generator=made) for name, n in sizes.items()}


def captured(form: Form) -> tuple[nn.Module, fisopt.Program]:
    model = Model(form).eval().requires_grad_(False)
    spec = ModelSpec(
        blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // INNER, 2, 2)
    )
    return model, fisopt.capture(model, inputs(), spec=spec)


def cats(program: fisopt.Program) -> int:
    return sum(
        node.target is aten.cat.default
        for block in program.blocks
        for node in block.body.graph.nodes
    )


@pytest.mark.parametrize("name", JOINED)
def test_parts_are_joined(name: str) -> None:
    model, program = captured(JOINED[name])
    assert not cats(program)
    for frames in (FRAMES, 7):
        given = inputs(frames)
        got = program.at(given)(**given)
        torch.testing.assert_close(got, model(**given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LEFT)
def test_other_parts_stay(name: str) -> None:
    model, program = captured(LEFT[name])
    assert cats(program) == 2
    torch.testing.assert_close(program(**inputs()), model(**inputs()), rtol=0, atol=0)


def test_parts_of_one_token() -> None:
    """A size of one may be a token as well as a row for all: such parts stay."""

    def one(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([x[:, :1] * a, x[:, 1:] * b], 1)

    model, program = captured(one)
    assert cats(program) == 2
    torch.testing.assert_close(program(**inputs()), model(**inputs()), rtol=0, atol=0)


def test_what_another_block_cuts_stays() -> None:
    """A graph of blocks keeps the results of each."""

    class Two(Model):
        def forward(self, video: Tensor, a: Tensor, b: Tensor) -> Tensor:
            first, rest = video[:, :INNER], video[:, INNER:]
            x = torch.cat([first * a, rest * b], 1)
            for layer in self.layers:
                first, rest = layer(x)
                x = torch.cat([first * a, rest * b], 1)
            return x

    class Pair(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x, x[:, :1], x[:, :1]).split([INNER, x.shape[1] - INNER], 1)

    model = Two(split)
    model.layers = nn.ModuleList(Pair(lambda x, a, b: x * a + b) for _ in range(2))
    model.eval().requires_grad_(False)
    graph = Tracer(model, ("layers.*",)).flat(Inputs.of(inputs())).graph
    left = [node for node in graph.nodes if node.target is aten.cat.default]
    assert len(left) == 2, "those of what a block returned"
