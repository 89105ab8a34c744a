"""FrameInterleave against a plain loop over the model's own blocks, every family and option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import FrameInterleave, PassManager, PreconditionError, Program
from fisopt.rewrite.cost import program_cost
from tests.passes.loop import Block, Options, blocks_of, interleaved
from tests.zoo import KINDS, Case, cases, zoo

TOLERANCE = 1e-5
Grid = tuple[int, int, int]
FILLS = ("residual", "carry", "state")
SWEEP = (
    Options(2),
    Options(4, "state", "all"),
    Options(3, "carry", "anchors", "attention"),
)
every_case = pytest.mark.parametrize("case", zoo().values(), ids=zoo())


def sparse(program: Program, options: Options) -> Program:
    """The rewritten Program; the pass manager verifies it."""
    step = FrameInterleave(**vars(options))
    return PassManager([step]).run(program)


def run(program: Program, inputs: dict[str, Any]) -> Tensor:
    output: Tensor = program(**inputs)[0]
    return output


def looped(
    case: Case,
    inputs: dict[str, Any],
    grid: Grid,
    options: Options,
    change: Callable[[Block], Block] = lambda block: block,
) -> Tensor:
    frames, height, width = grid
    model = case.model_for(frames)
    batch = inputs["encoder_hidden_states"].shape[0]
    blocks = [change(b) for b in blocks_of(case.family.name, model, height * width, batch)]
    with torch.no_grad(), interleaved(blocks, options, frames):
        output: Tensor = model(**inputs)[0]
    return output


def assert_equal(got: Tensor, want: Tensor, what: object) -> None:
    assert got.shape == want.shape
    difference = float((got - want).abs().max()) / max(1.0, float(want.abs().max()))
    assert difference <= TOLERANCE, f"{what}: {difference}"


PAIRS = [
    Options(
        stride,
        FILLS[j],
        ("anchors", "all")[(i + j) % 3 % 2],
        ("block", "attention")[(i + 2 * j) % 3 % 2],
    )
    for (i, stride), j in product(enumerate((2, 3, 4)), range(len(FILLS)))
]
"""Nine of the 36 option sets, in which every two values of two options meet."""


def test_every_two_values_meet() -> None:
    for one, other in combinations(("stride", "fill", "kv", "scope"), 2):
        met, every = ({(getattr(o, one), getattr(o, other)) for o in of} for of in (PAIRS, EVERY))
        assert met == every


def rows() -> list[Any]:
    """All of them for one model of each kind, half for any other, in turn; the rest is slow."""
    found = []
    for turn, (name, case) in enumerate(zoo().items()):
        for i, options in enumerate(PAIRS):
            few = name not in KINDS and (i + turn) % 2
            marks = (pytest.mark.slow,) if few else ()
            found.append(pytest.param(case, options, id=f"{name}-{i}", marks=marks))
    return found


def test_every_two_values_meet_in_every_run() -> None:
    """Each model also meets every value of every option."""
    run = [row.values for row in rows() if not row.marks]
    for name in ("stride", "fill", "kv", "scope"):
        met = {(case.name, getattr(options, name)) for case, options in run}
        assert met == {(case, getattr(options, name)) for case in zoo() for options in EVERY}
    assert {options for _, options in run} == set(PAIRS)


@pytest.mark.parametrize(("case", "options"), rows())
def test_equals_plain_loop(case: Case, program: Program, options: Options) -> None:
    grid = (7, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    dense = program.at(inputs)
    want = looped(case, inputs, grid, options)
    assert_equal(run(sparse(dense, options), inputs), want, options)
    assert not torch.allclose(want, run(dense, inputs), atol=1e-3), "the loop did nothing"


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [zoo()[name] for name in names], ids=names)


SEQUENCE = (1, 2, 3, 33)
"""Frame counts of every run; ``--exhaustive`` takes all from 1 to 33 with all of ``EVERY``."""
BETWEEN = (4, 6, 9, 16)
"""Of these each model takes one, in turn."""
EVERY = tuple(
    Options(*of) for of in product((2, 3, 4), FILLS, ("anchors", "all"), ("block", "attention"))
)


@cases("wan", "latte")
def test_every_frame_count(case: Case, program: Program, exhaustive: bool) -> None:
    """One option set a frame count, another one for the next model."""
    turn = list(zoo()).index(case.name)
    sequence = (*SEQUENCE, BETWEEN[turn % len(BETWEEN)])
    few = {frames: SWEEP[(i + turn) % len(SWEEP)] for i, frames in enumerate(sequence)}
    for frames in range(1, 34) if exhaustive else sequence:
        grid = (frames, 2, 2)
        inputs = case.inputs(*grid, batch=2)
        dense = program.at(inputs)
        for options in EVERY if exhaustive else (few[frames],):
            if options.stride > frames > 2:
                refused = f"stride {options.stride} is more than"
                with pytest.raises(PreconditionError, match=refused):
                    sparse(dense, options)
                continue
            got = run(sparse(dense, options), inputs)
            if frames <= 2:
                torch.testing.assert_close(got, run(dense, inputs), rtol=0, atol=0)
            assert_equal(got, looped(case, inputs, grid, options), (frames, options))


@only("wan", "hunyuan_video", "latte")
@pytest.mark.parametrize("blocks", ["1:", ":-1", "1:-1", "-2:", "0:2", "3:4"])
def test_block_range(case: Case, program: Program, blocks: str) -> None:
    grid = (7, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    options = Options(3, blocks=blocks)
    got = run(sparse(program.at(inputs), options), inputs)
    assert_equal(got, looped(case, inputs, grid, options), options)


@only("wan")
def test_one_video(case: Case, program: Program) -> None:
    grid = (7, 4, 3)
    inputs = case.inputs(*grid, batch=1)
    options = Options(2)
    got = run(sparse(program.at(inputs), options), inputs)
    assert_equal(got, looped(case, inputs, grid, options), options)


@only("wan")
def test_the_loop_tells_mistakes(case: Case, program: Program) -> None:
    """A wrong residue, compacted positions and forgotten modulation would all show."""
    grid = (7, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    got = run(sparse(program.at(inputs), Options(3)), inputs)

    def compacted(tables: Any, take: Any) -> Any:
        return tuple(table[:, : take(table, 1).shape[1]] for table in tables)

    wrong = replace_argument("rotary_emb", compacted)
    assert not torch.allclose(got, looped(case, inputs, grid, Options(3), wrong), atol=1e-4)
    shifted = Options(3, blocks="1:")
    assert not torch.allclose(got, looped(case, inputs, grid, shifted), atol=1e-4)
    for other in (Options(2), Options(3, "state"), Options(3, kv="all")):
        assert not torch.allclose(got, looped(case, inputs, grid, other), atol=1e-4)


def replace_argument(name: str, gather: Any) -> Callable[[Block], Block]:
    return lambda block: replace(block, arguments={**block.arguments, name: gather})


@only("cogvideox_2b")
def test_stride_one_is_dense(case: Case, program: Program) -> None:
    inputs = case.inputs(5, 3, 4, batch=2)
    result = FrameInterleave(stride=1)(program)
    assert not result.modified
    assert result.program is program
    torch.testing.assert_close(run(result.program, inputs), run(program, inputs), rtol=0, atol=0)


@every_case
def test_text_stays_whole(case: Case, program: Program) -> None:
    """No gather or fill touches a dimension without frames, and text beside frames is named."""
    result = FrameInterleave()(program).program
    graphs = [result.graph, *(block.body.graph for block in result.blocks)]
    for graph in graphs:
        for node in graph.nodes:
            if node.target is torch.ops.fisopt.gather_frames.default:
                x, dim, index, outer, inner, before, after = node.args
                frames = result.layout.frames
                assert x.meta["val"].shape[dim] == before + outer * frames * inner + after
                kept = index.meta["val"].shape[0]
                assert node.meta["val"].shape[dim] == before + outer * kept * inner + after


@pytest.mark.xdist_group("hunyuan_video")
@pytest.mark.parametrize("options", [Options(2), Options(2, kv="all", scope="attention")])
def test_a_given_first_frame_that_is_modulated_apart(options: Options) -> None:
    """HunyuanVideo's image-to-video form, which cuts the tokens of the first frame off."""
    case = zoo()["hunyuan_video"]
    case = replace(case, config={**case.config, "image_condition_type": "token_replace"})
    grid = (5, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    dense = fisopt.capture(case.model, inputs)
    made = sparse(dense, options)
    assert program_cost(made).work < 0.95 * program_cost(dense).work
    assert_equal(run(made, inputs), looped(case, inputs, grid, options), options)
