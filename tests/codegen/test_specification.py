"""What a lowered Program must keep of the Program, and what it says when it does not."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from fisopt import FrameInterleave, LoweringError, Program
from fisopt.codegen.lower import lower
from fisopt.codegen.specification import check_lowered

aten = torch.ops.aten


def stage_of(module: fx.GraphModule) -> tuple[fx.Node, fx.Graph]:
    """A call of a stage that a block became, and its graph."""
    calls = [n for n in module.graph.nodes if n.op == "call_module"]
    call = next(n for n in calls if len(n.args) > 10)
    stage = module.get_submodule(str(call.target))
    assert isinstance(stage, fx.GraphModule)
    return call, stage.graph


def other_operator(module: fx.GraphModule) -> None:
    """A softmax of half precision in the place of the last operator."""
    _, graph = stage_of(module)
    output = next(iter(reversed(graph.nodes)))
    last = output.all_input_nodes[0]
    with graph.inserting_before(output):
        half = graph.call_function(aten._to_copy.default, (last,), {"dtype": torch.float16})
    output.replace_input_with(last, half)


def other_sizes(module: fx.GraphModule) -> None:
    _, graph = stage_of(module)
    linear = next(n for n in graph.nodes if n.target is aten.linear.default)
    linear.args = (*linear.args[:1], linear.args[0], *linear.args[2:])


def other_argument(module: fx.GraphModule) -> None:
    call, _ = stage_of(module)
    call.args = (call.args[1], call.args[0], *call.args[2:])


def other_result(module: fx.GraphModule) -> None:
    output = next(iter(reversed(module.graph.nodes)))
    last = output.all_input_nodes[0]
    with module.graph.inserting_before(output):
        piece = module.graph.call_function(operator.getitem, (last, 0))
    piece.meta["val"] = last.meta["val"][0]
    output.args = ((piece,),)


def lost_argument(module: fx.GraphModule) -> None:
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        extra = module.graph.placeholder("extra")
    extra.meta["val"] = torch.empty(2, device="meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_operator, r"stage stage_\w+ computes .*float16"),
        (other_sizes, r"stage stage_\w+ does not run: "),
        (other_argument, r"passes .*, stage stage_\w+ takes "),
        (other_result, r"the lowered graph returns .*, the Program "),
        (lost_argument, r"the lowered graph takes .*, the Program "),
    ],
)
def test_what_differs_is_named(
    wan: Program, change: Callable[[fx.GraphModule], None], message: str
) -> None:
    program = FrameInterleave(first_block=0)(wan).program
    module = lower(program)
    check_lowered(program, module)
    change(module)
    with pytest.raises(LoweringError, match=message):
        check_lowered(program, module)
