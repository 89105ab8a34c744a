"""FrameInterleave against a plain loop over the model's own blocks, every family and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fisopt import FrameInterleave, PassManager, Program
from tests.passes.loop import Options, interleaved
from tests.zoo import Case, zoo

TOLERANCE = 1e-5
FILLS = ("residual", "carry", "state")
every_case = pytest.mark.parametrize("case", zoo().values(), ids=zoo())


def sparse(program: Program, options: Options) -> Program:
    """The rewritten Program; the pass manager verifies it."""
    step = FrameInterleave(**vars(options))
    return PassManager([step]).run(program)


def run(program: Program, inputs: dict[str, Any]) -> Tensor:
    output: Tensor = program(**inputs)[0]
    return output


def looped(
    case: Case, inputs: dict[str, Any], grid: tuple[int, int, int], options: Options
) -> Tensor:
    model = case.model_for(grid[0])
    batch = inputs["encoder_hidden_states"].shape[0]
    with torch.no_grad(), interleaved(case.family.name, model, options, grid, batch):
        output: Tensor = model(**inputs)[0]
    return output


def assert_equal(got: Tensor, want: Tensor, what: object) -> None:
    assert got.shape == want.shape
    difference = float((got - want).abs().max()) / max(1.0, float(want.abs().max()))
    assert difference <= TOLERANCE, f"{what}: {difference}"


@every_case
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kv", ["anchors", "all"])
@pytest.mark.parametrize("scope", ["block", "attention"])
def test_equals_plain_loop(
    case: Case, program: Program, stride: int, kv: str, scope: str
) -> None:
    grid = (7, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    dense = program.at(inputs)
    for fill in FILLS:
        options = Options(stride, fill, kv, scope)
        want = looped(case, inputs, grid, options)
        assert_equal(run(sparse(dense, options), inputs), want, options)
        assert not torch.allclose(want, run(dense, inputs), atol=1e-3), "the loop did nothing"
