"""TokenReduction and masks of every form that attention takes, fused and written out."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import ModelSpec, PassManager, PreconditionError, TokenReduction
from tests.passes.dense_reduction import Attend, Options, reduced

GRID, TOKENS = (5, 2, 3), 30
SPEC = ModelSpec(blocks=("layers.*",), grid=GRID)


class Layer(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return x + self.out(self.mix(q, k, v, mask).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.form == "fused":
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.form == "causal":
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / 2
        if self.form == "rolled":
            scores = scores.roll(1, -1)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(mask.logical_not(), -torch.inf)
        else:
            scores = scores + mask
        return scores.softmax(-1) @ v


class Model(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(form) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


def built(form: str, shape: tuple[int, ...], kind: torch.dtype) -> tuple[Model, dict[str, Any]]:
    model = Model(form).eval().requires_grad_(False)
    mask = torch.randn(shape)
    mask[..., 0] = 1.0  # no query sees nothing
    inputs = {"x": torch.randn(2, TOKENS, 8), "mask": mask > -0.5 if kind == torch.bool else mask}
    return model, inputs


FORMS, KINDS = ("fused", "written out"), (torch.bool, torch.float32)
SHAPES = (
    *((2, 1, 1, TOKENS), (TOKENS, TOKENS), (1, 2, TOKENS, TOKENS), (2, 1, TOKENS, 1)),
    (1, TOKENS),
)
ROWS = [
    pytest.param(form, kind, shape, marks=() if (i + j + k) % 2 else (pytest.mark.slow,))
    for (i, form), (j, kind), (k, shape) in product(*map(enumerate, (FORMS, KINDS, SHAPES)))
]
"""Every two values meet; the other half is slow."""


def test_every_two_values_meet() -> None:
    run = [row.values for row in ROWS if not row.marks]
    for one, other in combinations(range(3), 2):
        met = {(values[one], values[other]) for values in run}
        assert met == set(product((FORMS, KINDS, SHAPES)[one], (FORMS, KINDS, SHAPES)[other]))


@pytest.mark.parametrize(("form", "kind", "shape"), ROWS)
def test_rows_and_columns(form: str, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    model, inputs = built(form, shape, kind)
    program = fisopt.capture(model, inputs, spec=SPEC)
    for query, value in ((0.5, 0.3), (0.5, 0.0), (0.0, 0.3)):
        got = PassManager([TokenReduction(query, value)]).run(program)(**inputs)
        attend = Attend(Options(query, value), lambda _: GRID, front=False)

        def mix(self: object, *args: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(*args)

        with mock.patch.object(Layer, "mix", mix), reduced(model, SPEC.blocks, attend):
            want = model(**inputs)
        assert attend.seen == 2
        assert float((got - want).abs().max()) <= 1e-5, (query, value)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("causal", "its attention is causal"),
        ("rolled", "no product of queries and keys leads to its softmax entry by entry"),
    ],
)
def test_refused(form: str, reason: str) -> None:
    model, inputs = built(form, (1, TOKENS), torch.float32)
    program = fisopt.capture(model, inputs, spec=SPEC)
    with pytest.raises(PreconditionError, match=rf"layers\.0, layers\.1: {reason}"):
        TokenReduction(0.5)(program)
