"""Guidance branches of one batch on simulated ranks: equal to one rank, after any passes."""

from __future__ import annotations

import re
from typing import Any

import pytest

import fisopt
from fisopt import (
    FrameInterleave,
    GuidanceParallel,
    PassManager,
    PreconditionError,
    Program,
    SequenceParallel,
    StepCache,
    TileAttention,
    TileMask,
    TokenReduction,
)
from tests.conftest import GRID, captured
from tests.ranks import captured_with_heads, check_equal, rewritten, simulated
from tests.zoo import Case, cases, forms, zoo

SPARSE = FrameInterleave(blocks=":")
TILES = TileAttention(mask=TileMask(1))
PAIR = [GuidanceParallel()]


@cases("wan", "cogvideox_5b")
def test_equal_to_one_rank(case: Case, program: Program) -> None:
    both = rewritten(program, [SPARSE, TILES])
    result = check_equal(both, case.inputs(*GRID, batch=2), 2, PAIR)
    assert "1 of 2 items of the batch on each" in result.notes[0]
    half, whole = (p.blocks[0].call.args[0].meta["val"].shape[0] for p in (result.program, both))
    assert 2 * half == whole, "a block runs on half of the batch"  # which may hold frames too


def test_beside_sequence_parallelism(wan: Program) -> None:
    """Four ranks: two halves of a batch, each by two ranks."""
    inputs = zoo()["wan"].inputs(*GRID, batch=2)
    result = check_equal(rewritten(wan, [SPARSE]), inputs, 4, [*PAIR, SequenceParallel()])
    assert [(s.of, s.count) for s in result.program.mesh] == [("items", 2), ("tokens", 2)]
    assert len({s.group for s in result.program.mesh}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("passes", [[], [TokenReduction(0.5)], [SPARSE]], ids=str)
@pytest.mark.parametrize("name", zoo())
def test_sweep(name: str, passes: list[Any], ranks: int) -> None:
    program, inputs = captured_with_heads(name)
    more = [] if ranks == 2 else [SequenceParallel()]
    check_equal(rewritten(program, passes), inputs, ranks, [*PAIR, *more])


@pytest.mark.slow
def test_videos_in_one_dimension_with_a_batch() -> None:
    """Latte folds frames into the batch, or tokens; frames are gathered and filled there."""
    program, inputs = captured_with_heads("latte")
    result = check_equal(rewritten(program, [SPARSE]), inputs, 2, PAIR)
    assert result.notes == ("4 of 4 blocks on 2 ranks, 1 of 2 items of the batch on each",)


def test_one_item_is_left_to_the_calls() -> None:
    program = forms()["wan"].captured(*GRID, batch=1)
    with simulated(4):
        manager = PassManager([*PAIR, SequenceParallel()])
        made = manager.run(program)
    first, second = (each.result for each in manager.applied)
    assert first.notes == ("2 ranks, each computes one of two calls of a step",)
    assert fisopt.format_graph(first.program) == fisopt.format_graph(program)
    assert [(s.of, s.count) for s in made.mesh] == [("branches", 2), ("tokens", 2)]
    assert "on 2 ranks" in second.notes[0]


def test_a_step_cache_goes_with_it(wan: Program) -> None:
    made = rewritten(wan, [StepCache(threshold=0.1).at(fisopt.Step(1, 4))])
    with simulated(2):
        result = GuidanceParallel()(made)
    assert result.program.gauges == made.gauges != ()


def test_order_follows_from_what_is_divided(wan: Program) -> None:
    with simulated(4):
        manager = PassManager([SequenceParallel(), *PAIR, SPARSE])
        manager.run(wan)
        names = [each.name for each in manager.applied]
        assert names == ["FrameInterleave", "GuidanceParallel", "SequenceParallel"]
        with pytest.raises(PreconditionError, match="divided among 2 ranks"):
            GuidanceParallel()(manager.applied[-1].result.program)


@pytest.mark.parametrize(
    ("passes", "ranks", "says"),
    [
        (PAIR, 3, "3 ranks cannot be paired; wanted an even number of them"),
        ([*PAIR, SequenceParallel(degree=4)], 4, "times 2 of other passes"),
    ],
)
def test_refused(passes: list[Any], ranks: int, says: str) -> None:
    with simulated(ranks), pytest.raises(PreconditionError, match=re.escape(says)):
        PassManager(passes).run(captured("wan"))


def test_one_rank_computes_every_branch(wan: Program) -> None:
    with simulated(1):
        result = GuidanceParallel()(wan)
    assert result.program is wan
    assert result.notes == ("one rank: it computes every branch",)
