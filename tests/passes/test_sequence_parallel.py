"""Sequence parallelism on simulated ranks: equal to one rank, whatever passes come before."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

import fisopt
from fisopt import (
    FrameInterleave,
    ModelSpec,
    PassManager,
    PreconditionError,
    Program,
    RulePass,
    SequenceParallel,
    StepCache,
    TileAttention,
    TileMask,
    TokenReduction,
)
from tests import plain_dit
from tests.conftest import GRID, captured
from tests.ranks import captured_with_heads, check_equal, divided, rewritten, simulated
from tests.zoo import Case, cases, zoo

SPARSE = FrameInterleave(blocks=":")
TILES = TileAttention(mask=TileMask(1))
LISTS = {
    "none": [],
    "frames": [SPARSE],
    "tiles": [TILES],
    "tokens": [TokenReduction(0.5)],
    "frames_tiles": [SPARSE, TILES],
}
FORM = plain_dit.Form(text="behind")


@cache
def plain() -> tuple[Program, dict[str, Any]]:
    """Eight heads, ten tokens a frame and text behind them: three ranks divide neither."""
    model = plain_dit.PlainDiT(FORM, heads=8, layers=2).eval().requires_grad_(False)
    inputs = plain_dit.inputs(FORM, 5, 2, 5, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=(5, 2, 5))
    return fisopt.capture(model, inputs, spec=spec), inputs


@cases()
def test_equal_to_one_rank(case: Case, program: Program) -> None:
    both = rewritten(program, LISTS["frames_tiles"])
    check_equal(both, case.inputs(*GRID, batch=2), 2)


@pytest.mark.parametrize("name", ["frames", "tokens"])
def test_with_each_pass(name: str, wan: Program) -> None:
    inputs = zoo()["wan"].inputs(*GRID, batch=2)
    check_equal(rewritten(wan, LISTS[name]), inputs, 2)


@pytest.mark.parametrize("ranks", [3, 8])
def test_what_the_ranks_do_not_divide(ranks: int) -> None:
    program, inputs = plain()
    result = check_equal(program, inputs, ranks)
    held = -(-10 // ranks)
    assert result.notes[0] == (
        f"2 of 2 blocks on {ranks} ranks, {held} of 10 tokens of every frame on each, "
        f"{held * ranks - 10} of them repeated"
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("passes", LISTS)
@pytest.mark.parametrize("name", zoo())
def test_sweep(name: str, passes: str, ranks: int) -> None:
    program, inputs = captured_with_heads(name)
    check_equal(rewritten(program, LISTS[passes]), inputs, ranks)


def test_what_a_block_exchanges(wan: Program) -> None:
    """Queries, keys and values go to where their heads are, results to where their tokens are."""
    program = divided(wan, 2).program
    text = fisopt.format_graph(program)
    block = text.partition("\nblock_a_part\n")[2]
    assert len(re.findall("all_to_all_single", block)) == 4
    assert "all_gather" not in block
    assert "[2, 1, f5*12, 24] = aten::scaled_dot_product_attention" in block  # one of two heads
    assert "[2, f5*6, 48] = aten::linear" in block  # half of every frame
    assert text.count("all_gather_into_tensor") == 1  # of the result


def test_one_rank_is_dense(wan: Program) -> None:
    result = divided(wan, 1)
    assert result.program is wan
    assert result.notes == ("dense: one rank",)


def test_without_a_process_group(wan: Program) -> None:
    looked_at = PassManager([SequenceParallel(degree=2)]).run(wan)
    assert [(s.of, s.group, s.count) for s in looked_at.mesh] == [("tokens", "fisopt_ranks", 2)]
    with pytest.raises(PreconditionError, match=r"torch\.distributed is not set up"):
        PassManager([SequenceParallel()]).run(wan)


def test_a_step_cache_decides_by_one_number() -> None:
    program, _ = plain()
    made = rewritten(program, [StepCache(threshold=0.1).at(fisopt.Step(1, 4))])
    result = divided(made, 2).program
    gauges = next(n for n in result.graph.nodes if n.op == "output").args[0]
    assert result.gauges
    for node in gauges[len(gauges) - len(result.gauges) :]:
        assert node.args[0].target is torch.ops._c10d_functional.broadcast.default


@pytest.mark.parametrize(
    ("options", "ranks", "says"),
    [
        ({"degree": 3}, 8, "degree=3 does not divide the 8 ranks of the group"),
        ({}, 4, "an attention of 2 heads cannot be divided among 4 ranks"),
        ({}, 16, "a frame has 12 tokens (5x3x4), fewer than the 16 ranks"),
    ],
)
def test_refused(options: dict[str, Any], ranks: int, says: str) -> None:
    with pytest.raises(PreconditionError, match=re.escape(says)):
        divided(captured("wan"), ranks, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"degree": 0}, "degree must be an int of at least 1 or None, got 0"),
        ({"degree": True}, "degree must be an int of at least 1 or None, got True"),
        ({"group": 3}, "group must be a process group or its name, got 3"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(fisopt.OptionError, match=says):
        SequenceParallel(**options)


def test_it_comes_last(wan: Program) -> None:
    rule = fisopt.Rule(
        name="none",
        pattern=lambda x: torch.ops.aten.sin.default(x),
        replacement=lambda x: torch.ops.aten.sin.default(x),
        where=lambda match: True,
    )
    with pytest.raises(PreconditionError, match="stands after SequenceParallel"):
        PassManager([SequenceParallel(degree=2), RulePass((rule,))]).run(wan)
    program = divided(wan, 2).program
    with pytest.raises(PreconditionError, match="divided among 2 ranks"):
        SPARSE(program)
    ordered = PassManager([SequenceParallel(degree=2), SPARSE])
    ordered.run(wan)
    assert [each.name for each in ordered.applied] == ["FrameInterleave", "SequenceParallel"]


def test_a_subgroup_shares_a_clip(wan: Program) -> None:
    with simulated(4):
        program = PassManager([SequenceParallel(degree=2)]).run(wan)
    assert [share.count for share in program.mesh] == [2]


def test_too_short_a_clip() -> None:
    case = zoo()["wan"]
    program = fisopt.capture(case.model, case.inputs(2, 3, 4, batch=1))
    with pytest.raises(PreconditionError, match="2 latent frames"):
        divided(program, 2)
