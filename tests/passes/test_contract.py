"""What every pass and preset must keep: the input Program, parameters, truth and determinism."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch

import fisopt
from fisopt import (
    PRESETS,
    FrameInterleave,
    GuidanceParallel,
    Pass,
    PassManager,
    Program,
    Rule,
    RulePass,
    SequenceParallel,
    StepCache,
    TileAttention,
    TokenReduction,
)
from fisopt.rewrite.pass_base import Step
from fisopt.testing import check_contract
from tests.zoo import zoo

SWAP = Rule(
    "swap",
    lambda x, y: torch.ops.aten.add.Tensor(x, y),
    lambda x, y: torch.ops.aten.add.Tensor(y, x),
    lambda match: isinstance(match.value("y"), torch.Tensor),
)
PASSES: dict[str, tuple[Pass, ...]] = {
    **{name: passes for name, (_, passes) in PRESETS.items()},
    "FrameInterleave": (FrameInterleave(),),
    "TokenReduction": (TokenReduction(query=0.5, value=0.3),),
    "TokenReduction, cached": (TokenReduction(query=0.5, cache_steps=2),),
    "TileAttention": (TileAttention(),),
    "both": (FrameInterleave(), TileAttention(1, blocks="1:")),
    "StepCache": (StepCache(0.1, order=1),),
    "all": (FrameInterleave(), TileAttention(1, blocks="1:"), StepCache(steps="1::2")),
    "RulePass": (RulePass((SWAP,)),),
    "GuidanceParallel": (FrameInterleave(), GuidanceParallel()),
    "SequenceParallel": (FrameInterleave(), SequenceParallel(degree=2)),
    "nothing to do": (FrameInterleave(stride=1),),
}
every_pass = pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)


def fitted(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The passes with a range of blocks that a model of four blocks has."""
    return tuple(
        replace(p, blocks="1:-1") if getattr(p, "blocks", "") == "2:-2" else p for p in passes
    )


def test_every_public_pass_is_here() -> None:
    public = {
        name
        for name in fisopt.__all__
        if inspect.isclass(thing := getattr(fisopt, name))
        and issubclass(thing, Pass)
        and not inspect.isabstract(thing)
    }
    assert public <= {type(p).__name__ for passes in PASSES.values() for p in passes}


@every_pass
def test_contract(wan: Program, passes: tuple[Pass, ...]) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    dense = wan(**inputs)[0]
    for step, result in zip(fitted(passes), check_contract(wan, fitted(passes)), strict=True):
        assert repr(step).startswith(step.name)
        mine = {id(p) for p in wan.graph_module.parameters()}
        assert {id(p) for p in result.program.graph_module.parameters()} == mine
    torch.testing.assert_close(wan(**inputs)[0], dense, rtol=0, atol=0)


def test_steps() -> None:
    step = FrameInterleave(steps="1:-1")
    assert step.stepwise
    assert [step.at(Step(i, 4)) is None for i in range(4)] == [True, False, False, True]
    with pytest.raises(fisopt.ScheduleError, match="depends on the number of steps"):
        step.at(Step(1))
    assert not FrameInterleave().stepwise


@dataclass(frozen=True)
class Add(Pass):
    """A pass of few lines: add a number to the result."""

    amount: float = 1.0

    def run(self, rewriter: fisopt.Rewriter) -> None:
        output = next(iter(reversed(rewriter.graph.nodes)))
        last = output.all_input_nodes[0]
        with rewriter.after(last):
            rewriter.replace_uses(last, rewriter.call(torch.ops.aten.add.Tensor, last, self.amount))
        rewriter.note("added")


def test_own_pass(wan: Program) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    program = PassManager([Add(2.0), FrameInterleave()]).run(wan)
    want = FrameInterleave()(wan).program(**inputs)[0] + 2.0
    torch.testing.assert_close(program(**inputs)[0], want)


def test_second_interleave_is_refused(wan: Program) -> None:
    once = FrameInterleave(blocks=":2")(wan).program
    twice = FrameInterleave(blocks="2:")(once)
    assert twice.modified
    with pytest.raises(fisopt.PreconditionError, match="another pass has edited this block"):
        FrameInterleave(blocks=":")(once)
    result = FrameInterleave(blocks=":")(once, strict=False)
    assert [line.split(":")[0] for line in result.skipped] == ["blocks.0", "blocks.1"]
    assert result.modified
