"""Passes of lowering are checked after each, and the one that fails is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from fisopt.codegen import lower as lowering
from fisopt.codegen.flatten import flatten
from fisopt.codegen.lowering import LoweringPass
from fisopt.errors import LoweringError
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule
from tests.conftest import plain_captured
from tests.plain_dit import FORMS

aten = torch.ops.aten


def no_value(editor: GraphEditor, node: fx.Node) -> fx.Node:
    return editor.graph.call_function(aten.neg.default, (node.args[0],))


def wrong_type(editor: GraphEditor, node: fx.Node) -> fx.Node:
    made = editor.call(aten._to_copy.default, *node.args, dtype=torch.float64)
    made.meta = dict(node.meta)
    return made


def other_operands(editor: GraphEditor, node: fx.Node) -> fx.Node:
    made = editor.call(aten.neg.default, *node.args)
    made.args = (made.args[0], 3)
    return made


def another_result(editor: GraphEditor, node: fx.Node) -> fx.Node:
    output = next(n for n in editor.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], *output.args[0]),)  # type: ignore[misc]
    return editor.call(aten.neg.default, *node.args)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_type, r"break: .*_to_copy.* makes .*float64.*, its value says .*float32"),
        (no_value, r"break: .*neg.* has no value"),
        (other_operands, r"break: .*neg.* does not take its operands"),
        (another_result, r"break: takes and returns .*, before it was"),
    ],
)
def test_a_wrong_pass_is_named(make: Any, message: str) -> None:
    flat = flatten(plain_captured(FORMS["fused"])[1])
    rule = NodeRule("gelu", {aten.gelu.default}, make)
    with pytest.raises(LoweringError, match=message):
        LoweringPass("break", lambda module, root: [rule]).run(flat, flat)


def test_the_whole_graph_keeps_the_signature_of_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outline = lowering.outline

    def twice(*args: Any) -> Any:
        module, calls = outline(*args)
        output = next(n for n in module.graph.nodes if n.op == "output")
        output.args = ((*output.args[0], *output.args[0]),)
        return module, calls

    monkeypatch.setattr(lowering, "outline", twice)
    with pytest.raises(LoweringError, match=r"stages: takes and returns .*, before it was"):
        lowering.lower(plain_captured(FORMS["fused"])[1])
