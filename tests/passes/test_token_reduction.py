"""TokenReduction against loops over every distance, in every family and form."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import FrameInterleave, ModelSpec, PassManager, Program, TokenReduction
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.passes.token_reduction import Reduction
from tests import plain_dit
from tests.passes.dense_reduction import Attend, Grid, Options, reduced
from tests.passes.loop import Options as LoopOptions
from tests.passes.test_frame_interleave import looped
from tests.zoo import KINDS, Case, zoo

TOLERANCE = 1e-5
GRID = (7, 5, 4)


def run(program: Program, inputs: dict[str, Any]) -> Tensor:
    output: Tensor = program(**inputs)[0]
    return output


def short(program: Program, options: Options) -> Program:
    """The rewritten Program; the pass manager verifies it."""
    return PassManager([Reduction(**vars(options))]).run(program)  # type: ignore[arg-type]


def written_out(case: Case, inputs: dict[str, Any], grid: Grid, options: Options) -> Tensor:
    model = case.model_for(grid[0])
    attend = Attend(options, lambda _: grid, front=case.family.name == "cogvideox")
    with reduced(model, case.spec.blocks, attend):
        output: Tensor = model(**inputs)[0]
    assert attend.seen
    return output


def assert_equal(got: Tensor, want: Tensor, what: object) -> None:
    assert got.shape == want.shape
    difference = float((got - want).abs().max()) / max(1.0, float(want.abs().max()))
    assert difference <= TOLERANCE, f"{what}: {difference}"


SWEEP = (
    Options(0.5, 0.3),
    Options(0.8, 0.0, seed=3),
    Options(0.0, 0.4, mode="mean"),
    Options(0.6, 0.6, (6, 2, 2), "mean"),
    Options(0.99, 0.99, (6, 2, 2)),
)


def rows() -> list[Any]:
    """All of them for one model of each kind, two for any other, in turn; the rest is slow."""
    found = []
    for turn, (name, case) in enumerate(zoo().items()):
        for i, options in enumerate(SWEEP):
            few = name not in KINDS and (i + turn) % len(SWEEP) not in (0, 2)
            marks = (pytest.mark.slow,) if few else ()
            found.append(pytest.param(case, options, id=f"{options}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "options"), rows())
def test_equals_the_loops(case: Case, program: Program, options: Options) -> None:
    inputs = case.inputs(*GRID, batch=2)
    dense = program.at(inputs)
    want = written_out(case, inputs, GRID, options)
    assert_equal(run(short(dense, options), inputs), want, options)
    assert not torch.allclose(want, run(dense, inputs), atol=1e-4), "nothing was dropped"


@pytest.mark.parametrize(
    "case",
    [zoo()[n] for n in ("wan", "cogvideox_2b", "hunyuan_video", "mochi")],
    ids=lambda c: c.name,
)
def test_inside_sparse_blocks(case: Case, program: Program) -> None:
    """The model's own blocks on anchor frames, with loops in the place of their attention."""
    inputs = case.inputs(*GRID, batch=2)
    options = Options(0.5, 0.3)
    frames = FrameInterleave(stride=2, blocks=":")
    tokens = TokenReduction(0.5, 0.3)
    got = run(PassManager([tokens, frames]).run(program.at(inputs)), inputs)
    kept = {i: (len(anchor_frames(GRID[0], 2, i % 2)), *GRID[1:]) for i in range(9)}
    attend = Attend(options, kept.__getitem__, front=case.family.name == "cogvideox")
    with reduced(case.model, case.spec.blocks, attend):
        want = looped(case, inputs, GRID, LoopOptions(2))
    assert attend.seen
    assert_equal(got, want, case.name)


class Named(NamedTuple):
    """What a model may return: a value that is no tensor, beside its result."""

    sample: Tensor
    steps: int
    hidden: None = None


class Beside(plain_dit.PlainDiT):
    def forward(self, video: Tensor, text: Tensor, time: Tensor) -> Any:
        return Named(super().forward(video, text, time)["video"], 3)


def test_state_of_a_model_that_returns_more_than_tensors() -> None:
    """What a pass returns beside a model's results comes after all of them."""
    form = plain_dit.FORMS["fused"]
    model = Beside(form).eval().requires_grad_(False)
    call = plain_dit.inputs(form, 5, 2, 3)
    spec = ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))
    passes = [TokenReduction(query=0.4, value=0.4)]
    got = fisopt.optimize(model, passes, call, spec, backend="eager")(**call)
    plain = plain_dit.PlainDiT(form).eval().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    want = fisopt.optimize(plain, passes, call, spec, backend="eager")(**call)
    assert got[1:] == (3, None)
    assert torch.equal(got[0], want["video"])
