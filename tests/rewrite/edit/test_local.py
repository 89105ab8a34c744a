"""The driver of local rewrites, on graphs of a few operators."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from fisopt.errors import LoweringError
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule, Tallies, rewrite

aten = torch.ops.aten


def chain(*targets: Any) -> fx.Graph:
    """Operators of one operand, each on the result of the one before."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for target in targets:
        node = graph.call_function(target, (node,))
    graph.output(node)
    return graph


def names(graph: fx.Graph) -> list[str]:
    return [n.target._opname for n in graph.nodes if n.op == "call_function"]


def becomes(old: Any, new: Any) -> NodeRule:
    return NodeRule(
        f"{old} to {new}", {old}, lambda editor, node: editor.call(new, *node.args, **node.kwargs)
    )


def test_until_none_applies() -> None:
    """What one rule makes is seen by those before it in the list too."""
    graph = chain(aten.sin.default, aten.exp.default, aten.sin.default)
    rules = [
        becomes(aten.tan.default, aten.relu.default),
        becomes(aten.sin.default, aten.tan.default),
    ]
    tallies = rewrite(GraphEditor(graph, "test"), rules)
    assert names(graph) == ["relu", "exp", "relu"]
    assert [t.applied for t in tallies.by_rule.values()] == [2, 2]
    assert tallies.applied == 4


def test_once() -> None:
    graph, swap = chain(aten.sin.default), becomes(aten.sin.default, aten.sin.default)
    seen = Tallies()
    for count in (1, 2):
        rewrite(GraphEditor(graph, "test"), [swap], once=True, tallies=seen)
        assert seen.applied == count
    with pytest.raises(
        LoweringError, match=r"aten\.sin\.default: after \d+ sweeps .* still something to replace"
    ):
        rewrite(GraphEditor(graph, "test"), [swap])


def test_what_is_left_alone_is_counted() -> None:
    graph = chain(aten.sin.default)
    rule = NodeRule("never", {aten.sin.default}, lambda editor, node: None)
    tally = rewrite(GraphEditor(graph, "test"), [rule]).by_rule["never"]
    assert (tally.applied, tally.refused) == (0, 1)


def test_what_dies_goes_and_nothing_else() -> None:
    """Operands of what is replaced; what was dead before stays, it may draw random numbers."""
    graph = chain(aten.sin.default, aten.exp.default)
    with graph.inserting_before(next(n for n in graph.nodes if n.op == "output")):
        graph.call_function(aten.tan.default, (next(iter(graph.nodes)),))
    rule = NodeRule("input", {aten.exp.default}, lambda editor, node: node.args[0].args[0])
    rewrite(GraphEditor(graph, "test"), [rule])
    assert names(graph) == ["tan"]


def valued(graph: fx.Graph) -> GraphEditor:
    """An editor that knows values: of two rows and three columns."""
    mode = torch._subclasses.FakeTensorMode()
    editor = GraphEditor(graph, "halve", mode)
    for node in graph.nodes:
        if node.op != "output":
            with mode:
                node.meta["val"] = torch.empty(2, 3)
    return editor


def test_another_value_is_refused() -> None:
    editor = valued(chain(aten.sin.default))
    rule = NodeRule(
        "half",
        {aten.sin.default},
        lambda editor, node: editor.call(aten.select.int, *node.args, 0, 0),
    )
    with pytest.raises(
        LoweringError, match=r"halve: .*sin.* is \(\(\(2, 3\), .*stands for it now, .*\(\(\(3,\), "
    ):
        rewrite(editor, [rule])


@pytest.mark.parametrize("made", [1, 2])
def test_results_of_one_operator(made: int) -> None:
    """A node for each result; one that is read and has none is refused."""
    graph = chain(aten.aminmax.default)
    output = next(n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):
        pair = [graph.call_function(operator.getitem, (output.args[0], i)) for i in (0, 1)]
    output.args = (tuple(pair),)

    def split(editor: GraphEditor, node: fx.Node) -> list[fx.Node | None]:
        one, two = (editor.call(t, *node.args) for t in (aten.sin.default, aten.exp.default))
        return [one, two if made == 2 else None]

    rule, editor = NodeRule("split", {aten.aminmax.default}, split), GraphEditor(graph, "test")
    if made == 2:
        rewrite(editor, [rule])
        assert names(graph) == ["sin", "exp"]
    else:
        with pytest.raises(LoweringError, match="what getitem_1 reads is no tensor"):
            rewrite(editor, [rule])
