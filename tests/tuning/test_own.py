"""Passes of the user in the search: where they are offered, with what they go, and in the recipe."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fisopt
from fisopt import BlockPass, OptionError, Recipe, RecipeError, Rewriter
from fisopt.rewrite.cost import graph_cost
from fisopt.tuning import component as component_module
from fisopt.tuning import contenders
from fisopt.tuning.component import Component
from fisopt.tuning.option import Option
from fisopt.tuning.own import check_own
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.space import Plan, Space
from fisopt.tuning.tune import rehearse_program
from tests.conftest import captured
from tests.denoiser import Denoiser

pytestmark = [pytest.mark.xdist_group("wan"), pytest.mark.usefixtures("captured_once")]
PROMPTS = ["a", "bb"]


@dataclass(frozen=True)
class SkipCross(BlockPass):
    """No cross-attention in some blocks; `alone` refuses blocks that others have edited."""

    alone: bool = False

    def run(self, rewriter: Rewriter) -> None:
        for block in self.chosen(rewriter.program):
            branches = [b for b in block.branches if b.kind == "cross_attention"]
            if not branches or (self.alone and block.call.meta.get("edited")):
                rewriter.skip(block.path, "it has no cross-attention of its own")
                continue
            with rewriter.edit(block) as edit:
                for branch in branches:
                    kept = next(x for x in branch.add.all_input_nodes if x is not branch.update)
                    edit.replace_uses(edit.twin(branch.add), edit.twin(kept))


@dataclass(frozen=True)
class SkipBlock(BlockPass):
    """Some blocks are gone."""

    def run(self, rewriter: Rewriter) -> None:
        for block in self.chosen(rewriter.program):
            streams = {result: block.source(result) for result in block.results}
            with rewriter.edit(block) as edit:
                for result, argument in streams.items():
                    edit.give(result, block.passed(argument))


@dataclass(frozen=True)
class Nothing(BlockPass):
    """Finds nothing to do."""

    names: Any = field(default=())

    def run(self, rewriter: Rewriter) -> None:
        self.chosen(rewriter.program)


@dataclass(frozen=True)
class Whole(fisopt.Pass):
    """Knows no blocks and no steps."""

    def run(self, rewriter: Rewriter) -> None:
        rewriter.note("nothing")


@cache
def component(*own: BlockPass) -> Component:
    return Component("transformer", captured("wan"), Counter({0: 1, 1: 1}), own=own)


def test_it_is_a_choice_of_the_branch_that_it_changes() -> None:
    own = SkipCross(blocks="1:", steps="1:")
    made = component(own)
    option = Option("cross_attention", own=own)
    program = own(made.dense).program
    saved = [
        graph_cost(a.body.graph).work - graph_cost(b.body.graph).work
        for a, b in zip(made.dense.blocks, program.blocks, strict=True)
    ]
    assert saved[0] == 0 < saved[1]
    assert made.saved[option] == pytest.approx(saved)
    space = Space([made], 2, 3)
    offered = {p for p, options in space.options.items() if option in options}
    assert {p.part for p in offered} == {"cross_attention"}
    assert {p.steps for p in offered} == {(1,)}
    assert {b for p in offered for b in p.blocks} == {1, 2, 3}


def test_one_that_changes_several_branches_takes_the_block_for_itself() -> None:
    own = fisopt.FrameInterleave(stride=4, kv="anchors", blocks="1:3")
    option = Option("block", own=own)
    space = Space([component(own)], 2, 3)
    prices = {(p, o): 1.0 for p, options in space.options.items() for o in options}
    prices |= {(p, o): 0.9 for p, o in prices if o == option}
    knapsack = Knapsack(space, prices)
    for share in (0.3, 0.6, 0.9):
        plan = knapsack.least_error(share * knapsack.most())
        assert plan is not None
        taken = {(p.steps, b) for p, o in plan.options.items() if o == option for b in p.blocks}
        others = {(p.steps, b) for p, o in plan.options.items() if o != option for b in p.blocks}
        assert not taken & others
    assert taken
    passes = space.passes(plan)["transformer"]
    assert all(p.blocks in {"1", "2", "1,2"} for p in passes if getattr(p, "stride", 1) == 4)


def test_what_it_saves_with_others_is_what_the_program_saves() -> None:
    """SkipCross and strides on the other branches of one block, in one plan."""
    own = SkipCross()
    made = component(own)
    space = Space([made], 2, 3)
    place = {p.part: p for p in space.options if p.blocks == (2,) and p.steps == (1,)}
    plan = Plan(
        {
            place["cross_attention"]: Option("cross_attention", own=own),
            place["self_attention"]: Option("self_attention", 2),
            place["feed_forward"]: Option("feed_forward", 2),
        }
    )
    passes = space.passes(plan)["transformer"]
    assert [type(p).__name__ for p in passes] == ["FrameInterleave", "SkipCross"]
    assert all((p.blocks, p.steps) != (":", ":") for p in passes)
    step = fisopt.Step(1, 2)
    program = made.dense
    for each in passes:
        active = each.at(step)
        assert active is not None
        program = active(program).program
    kinds = {b.kind for b in program.blocks[2].branches}
    assert "cross_attention" not in kinds
    assert "cross_attention" in {b.kind for b in program.blocks[1].branches}
    assert space.cost(plan) == pytest.approx(made.total + made.costs.whole(program), rel=1e-6)


def test_a_plan_has_it_and_its_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component_module, "options_of", lambda part, _: ())
    monkeypatch.setattr(contenders, "PRESETS", {})
    pipeline, own = Denoiser(), SkipCross(blocks="1:")
    made = fisopt.tune(pipeline, "1.02x", PROMPTS, steps=1, minutes=9, passes=[own])
    assert made.reached
    (chosen,) = made.passes["transformer"]
    assert isinstance(chosen, SkipCross)
    (path,) = made.save(tmp_path / "recipe.yaml").values()
    assert f"{__name__}.SkipCross" in path.read_text()
    assert Recipe.load(path).passes == (chosen,)

    errors = []
    for index, prompt in enumerate(PROMPTS):
        ends = []
        for passes in ([], [chosen]):
            fisopt.optimize(pipeline, passes, backend="eager")
            drawn = torch.Generator().manual_seed(index)
            with torch.no_grad():
                ends.append(pipeline(prompt, num_inference_steps=1, generator=drawn)[0])
            fisopt.restore(pipeline)
        errors.append(float((ends[1] - ends[0]).norm() / ends[0].norm()))
    assert made.error == pytest.approx((errors[0] * errors[1]) ** 0.5, rel=1e-4)

    text = path.read_text().replace(f"{__name__}.SkipCross", "elsewhere.SkipCross")
    path.write_text(text)
    with pytest.raises(RecipeError, match="import the module that defines the pass first"):
        Recipe.load(path)


def test_one_that_saves_nothing_is_told() -> None:
    left = Space([component(Nothing())], 2, 3).left_out()
    assert [option.own for option in left] == [Nothing()]
    assert not Space([component(SkipCross())], 2, 3).left_out()


def test_blocks_that_are_gone_are_counted_as_they_were() -> None:
    own = SkipBlock(blocks="1:3")
    made = component(own)
    option = Option("block", own=own)
    work = [graph_cost(block.body.graph).work for block in made.dense.blocks]
    assert made.saved[option] == pytest.approx([0, work[1], work[2], 0])
    mine, tiled = copy(made), Option("self_attention", tiles=2)
    mine.saved = made.saved | {tiled: [1.0] * 4}
    space = Space([mine], 2, 3)
    place = {(p.part, p.blocks): p for p in space.options if p.steps == (1,)}
    plan = Plan({place["block", (1,)]: option, place["self_attention", (3,)]: tiled})
    *_, last = space.passes(plan)["transformer"]
    assert last == SkipBlock(blocks=[1], steps=[1])  # the other has counted blocks before
    with pytest.raises(OptionError, match="SkipBlock leaves out 2 blocks"):
        component(own, SkipCross())


def test_a_rehearsal_counts_it() -> None:
    dense = rehearse_program(captured("wan"), steps=2)
    with_own = rehearse_program(captured("wan"), steps=2, passes=[SkipCross()])
    assert with_own.changes == dense.changes + 2 * 4
    assert any("SkipCross" in saving.option for saving in with_own.savings)


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match=r"wanted a fisopt\.BlockPass"):
        check_own([Whole()])
    with pytest.raises(OptionError, match="give tuples instead of lists"):
        check_own([Nothing(names=["a"])])
    with pytest.raises(RecipeError, match="cannot be part of a recipe"):
        check_own([Nothing(names=frozenset("a"))])
    assert check_own([SkipCross()] * 2) == (SkipCross(),)
