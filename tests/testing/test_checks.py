"""The test kit finds what a pass breaks, and lets a right one through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fisopt
from fisopt import BlockPass, FrameInterleave, Pass, Program, Rewriter, Step
from fisopt.testing import assert_program, check_contract, check_pass, zoo

pytestmark = pytest.mark.xdist_group("wan")


@dataclass(frozen=True)
class Skip(BlockPass):
    """Leave blocks out."""

    told: bool = True

    def run(self, rewriter: Rewriter) -> None:
        for block in self.chosen(rewriter.program):
            with rewriter.edit(block) as edit:
                for result in block.results:
                    edit.give(result, block.passed(block.source(result)))
        if self.told:
            rewriter.note("left out")


def without_the_second(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]
) -> Any:
    blocks[1].register_forward_hook(lambda _, given, __: given[0])
    return model(**inputs)


@dataclass(frozen=True)
class Add(Pass):
    """Add a random number, or change the Program that was given."""

    def run(self, rewriter: Rewriter) -> None:
        last = next(iter(reversed(rewriter.graph.nodes))).all_input_nodes[0]
        with rewriter.after(last):
            some = float(torch.rand(()))
            rewriter.replace_uses(last, rewriter.call(torch.ops.aten.add.Tensor, last, some))
        rewriter.note("added")


def test_a_right_pass_passes() -> None:
    found = check_pass(Skip(blocks=(1,)), without_the_second, models=["wan"])
    assert found["wan"].notes == ("left out",)


def test_a_pass_that_does_something_else_is_found() -> None:
    with pytest.raises(AssertionError, match=r"Skip\(.*\): wan: .* from the oracle"):
        check_pass(Skip(blocks=(2,)), without_the_second, models=["wan"])


def test_the_contract(wan: Program) -> None:
    with pytest.raises(AssertionError, match="left no note"):
        check_contract(wan, [Skip(told=False, blocks=(1,))])
    with pytest.raises(AssertionError, match="makes another Program each time"):
        check_contract(wan, [Add()])
    with pytest.raises(AssertionError, match="is dense at step 0 of 4"):
        check_pass(FrameInterleave(steps="1:"), models=["wan"])
    check_pass(FrameInterleave(steps="1:"), models=["wan"], step=Step(1, 4))


def test_programs_as_text(wan: Program) -> None:
    text = fisopt.format_graph(wan, blocks=False)
    assert_program(wan, text, blocks=False)
    assert_program(wan, "\n".join(f"    {line}" for line in text.splitlines()), blocks=False)
    with pytest.raises(AssertionError, match=r"(?s)--- wanted.*\n-.*block_z"):
        assert_program(wan, text.replace("block_a", "block_z"), blocks=False)


def test_the_zoo_has_every_family() -> None:
    families = {case.family.name for case in zoo().values()}
    assert families == set(fisopt.models.families())
    case = zoo()["wan"]
    assert len(case.blocks_of(case.model)) == len(case.captured(5, 3, 4, batch=2).blocks)
