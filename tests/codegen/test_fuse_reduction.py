"""Reduced attentions as one operator, against the graphs that they are fused in."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import fx

from fisopt import PassManager
from fisopt.codegen import lower as lowering
from fisopt.codegen.fuse_reduction import fuse_reduction
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import rewrite
from fisopt.rewrite.tracing.inputs import Inputs, bind
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS, Form

FUSED = torch.ops.fisopt.reduce_attend_restore.default
GRID = (5, 2, 3)
SOME = {name: FORMS[name] for name in ("fused", "text_in_front", "post_norm", "written_out")}
FORM = FORMS["text_in_front"]


def calls(module: fx.GraphModule, target: Any) -> int:
    graphs = [c.graph for _, c in module.named_children() if isinstance(c, fx.GraphModule)]
    return sum(node.target is target for graph in graphs for node in graph.nodes)


def lowered(form: Form, step: TokenReduction) -> tuple[fx.GraphModule, list[Any], list[Any]]:
    """The lowered graph of a reduced plain model, its inputs, and what the Program returns."""
    model, program = plain_captured(form)
    reduced = PassManager([step]).run(program)
    inputs = plain_dit.inputs(form, *GRID, batch=2)
    values = [x for _, x in Inputs.of(bind(model, (), inputs)).tensors()]
    with torch.no_grad():
        return lowering.lower(reduced), values, list(reduced.graph_module(*values))


@pytest.fixture
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse although nothing is on a GPU; the operator then runs in plain torch."""
    monkeypatch.setattr(lowering, "fuse_reduction", partial(fuse_reduction, device="cpu"))


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("form", SOME.values(), ids=SOME)
def test_fused_equals_the_program(form: Form) -> None:
    for step in (TokenReduction(0.5, 0.4, (3, 1, 2)), TokenReduction(0.6, 0.0, (3, 1, 2))):
        module, values, want = lowered(form, step)
        assert bool(calls(module, FUSED)) == form.fused
        with torch.no_grad():
            for got, expected in zip(module(*values), want, strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize(
    "step",
    [TokenReduction(0.5, 0.4, (3, 1, 2), mode="mean"), TokenReduction(0.0, 0.4, (3, 1, 2))],
    ids=["means", "values alone"],
)
def test_what_is_not_fused(step: TokenReduction) -> None:
    module, values, want = lowered(FORM, step)
    assert calls(module, FUSED) == 0
    with torch.no_grad():
        for got, expected in zip(module(*values), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_nothing_is_fused_on_a_cpu() -> None:
    module, *_ = lowered(FORM, TokenReduction(0.5, 0.4, (3, 1, 2)))
    assert calls(module, FUSED) == 0


def chain(**options: Any) -> fx.Graph:
    """Reduce, attend and restore by hand."""
    graph, ops = fx.Graph(), torch.ops.fisopt
    q, k, v, kept, origin = (graph.placeholder(name) for name in ("q", "k", "v", "kept", "origin"))
    means = origin if "means" in options else None
    short = [graph.call_function(ops.reduce_tokens.default, (x, kept, means, 2)) for x in (q, k, v)]
    extra = {name: options[name] for name in ("is_causal", "enable_gqa") if name in options}
    attend = torch.ops.aten.scaled_dot_product_attention.default
    attention = graph.call_function(attend, tuple(short), {"scale": 0.5, **extra})
    restore = ops.restore_tokens.default
    result = graph.call_function(restore, (attention, origin, 2, 0, 0, 0))
    result.meta["val"] = torch.empty(1, 2, 9, 4)
    graph.output((result, attention) if options.get("read_twice") else result)
    return graph


def applied(graph: fx.Graph) -> int:
    return rewrite(GraphEditor(graph, "fuse"), [fuse_reduction("cpu")]).applied


def test_scale_and_dead_nodes() -> None:
    graph = chain()
    assert applied(graph) == 1
    names = [n.name for n in graph.nodes if n.op == "call_function"]
    assert names == ["reduce_attend_restore_default"]
    fused = next(n for n in graph.nodes if n.target is FUSED)
    assert fused.args[7] == 0.5
    assert fused.args[4] is fused.args[5]


@pytest.mark.parametrize("option", ["is_causal", "enable_gqa", "read_twice", "means"])
def test_chains_that_are_left_alone(option: str) -> None:
    graph = chain(**{option: True})
    before = str(graph)
    assert applied(graph) == 0
    assert str(graph) == before
