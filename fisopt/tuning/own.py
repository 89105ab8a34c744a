"""Passes of the user as choices: which branch one changes, and whether others go with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from fisopt.errors import OptionError, PassError, shown
from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.interleaving.form import BRANCHES
from fisopt.recipe.options import encode
from fisopt.recipe.stores import Store
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.outline import structure, value_key
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program
from fisopt.tuning.option import Option, Part


def check_own(passes: Sequence[Any]) -> tuple[BlockPass, ...]:
    """Insist on passes that a search can move from block to block and write into a recipe.

    Raises:
        OptionError: one is no `BlockPass`, or its options cannot be compared.
        RecipeError: a recipe cannot hold its options.
    """
    for each in passes:
        if not isinstance(each, BlockPass) or not dataclasses.is_dataclass(each):
            raise OptionError(
                f"tune: passes are tried block by block and step by step; got {shown(each)}, "
                "wanted a fisopt.BlockPass, a frozen dataclass with `blocks` and `steps`"
            )
        try:
            hash(each)
        except TypeError as error:
            raise OptionError(
                f"tune: the options of {each.name} cannot be compared ({error}); give tuples "
                "instead of lists"
            ) from error
        encode(each, Store())
    return tuple(dict.fromkeys(passes))


def check_counted(pass_: BlockPass, passes: int, gone: int) -> None:
    """Insist on a pass that leaves blocks out being the only one: it shifts the others' numbers.

    Raises:
        OptionError: there are several passes, and this one leaves out blocks.
    """
    if gone and passes > 1:
        raise OptionError(
            f"tune: {pass_.name} leaves out {gone} blocks, so other passes would count blocks "
            "differently; tune with this pass alone"
        )


def own_option(pass_: BlockPass, dense: Program, rewritten: Program) -> Option:
    """The choice that a pass is: of the one branch that it changes, else of a block for itself.

    Args:
        pass_: the pass.
        dense: the Program.
        rewritten: the same after the pass.
    """
    left = {block.path: block for block in rewritten.blocks}
    changed = {part for block in dense.blocks for part in _changed(block, left.get(block.path))}
    part: Part = changed.pop() if len(changed) == 1 else "block"
    option = Option(part, own=pass_)
    return option if part != "block" and _joins(option, dense) else Option("block", own=pass_)


def _changed(before: Block, after: Block | None) -> set[Part]:
    """The branches of a block whose operators are others now; all of one that is gone."""
    if after is None:
        return {"block"}
    if structure(before.body.graph) == structure(after.body.graph):
        return set()
    was, now = _branches(before), _branches(after)
    return {part for part in {*was, *now} if was.get(part) != now.get(part)} or {"block"}


def _branches(block: Block) -> dict[Part, Counter[Hashable]]:
    """What every branch computes, by kind."""
    found: dict[Part, Counter[Hashable]] = {}
    for branch in block.branches:
        rows = ((str(node.target), value_key(node)) for node in branch.nodes)
        found.setdefault(branch.kind, Counter()).update(rows)
    return found


def _joins(option: Option, dense: Program) -> bool:
    """Whether strides over the block's other branches go with it."""
    strides: Any = {branch: 1 if branch == option.part else 2 for branch in BRANCHES}
    others = FrameInterleave(stride=1, kv="all", blocks=":", **strides)
    here = [b.index for b in dense.blocks if any(x.kind == option.part for x in b.branches)]
    assert option.own is not None
    own = dataclasses.replace(option.own, blocks=here)
    try:
        PassManager([others, own]).run(dense)
    except PassError:
        return False
    return True
