"""What the analyses read from the structure of blocks."""

from __future__ import annotations

import pytest
import torch

from fisopt import Program
from fisopt.rewrite.analysis.structure import (
    attentions,
    dependences,
    residual_branches,
    residual_source,
    results,
    self_attentions,
)
from fisopt.rewrite.axes import axes_of, carries_frames
from fisopt.rewrite.block import repeated_blocks
from fisopt.rewrite.edit.demand import analyse
from fisopt.rewrite.edit.frames import Frames
from tests.conftest import plain_captured
from tests.plain_dit import FORMS
from tests.zoo import Case, zoo

every_case = pytest.mark.parametrize("case", zoo().values(), ids=zoo())
BRANCHES = {
    "wan": 3,
    "wan_i2v": 3,
    "wan_i2v_clip": 3,
    "wan_ti2v": 3,
    "ltx": 3,
    "allegro": 3,
    "cogvideox_2b": 2,
    "cogvideox_5b": 2,
    "mochi": 2,
    "hunyuan_video15": 2,
    "hunyuan_video15_i2v": 2,
}


@every_case
def test_every_result_has_its_residual_stream(case: Case, program: Program) -> None:
    for block in program.blocks:
        graph = block.body.graph
        framed = [n for n in results(graph) if carries_frames(n)]
        assert len(framed) == 1
        source = residual_source(graph, framed[0])
        assert source is not None
        assert axes_of(source) == axes_of(framed[0])


@every_case
def test_one_self_attention_a_block(case: Case, program: Program) -> None:
    for block in program.blocks:
        graph = block.body.graph
        assert len(self_attentions(graph)) == 1
        assert set(self_attentions(graph)) <= set(attentions(graph))


@every_case
def test_residual_branches(case: Case, program: Program) -> None:
    if case.name not in BRANCHES:
        return
    for block in program.blocks:
        graph = block.body.graph
        video = next(n for n in results(graph) if carries_frames(n))
        streams = [b for b in residual_branches(graph) if axes_of(b.add) == axes_of(video)]
        assert len(streams) >= BRANCHES[case.name]
        for branch in streams:
            assert branch.stream not in branch.nodes
            assert branch.add not in branch.nodes


@every_case
def test_repeated_blocks(case: Case, program: Program) -> None:
    groups = repeated_blocks(program.blocks)
    assert sum(map(len, groups)) == len(program.blocks)
    assert len(groups) == len({str(c.call.target) for c in program.blocks})


def test_no_residual_stream_through_a_norm() -> None:
    _, program = plain_captured(FORMS["post_norm"])
    graph = program.blocks[0].body.graph
    source = residual_source(graph, results(graph)[0])
    assert source is not None, "the one argument of the result's shape stands for it"
    assert residual_branches(graph)


@pytest.mark.parametrize("name", ["fused", "written_out"])
def test_attentions_of_a_plain_block(name: str) -> None:
    _, program = plain_captured(FORMS[name])
    graph = program.blocks[0].body.graph
    assert len(attentions(graph)) == 2
    assert len(self_attentions(graph)) == 1
    assert all(len(a.members) == (1 if name == "fused" else 2) for a in attentions(graph))


def test_dependences(wan: Program) -> None:
    graph = wan.blocks[0].body.graph
    edges = dependences(graph)
    assert set(edges) == set(graph.nodes)
    assert all(a in b.all_input_nodes for a, b in edges.edges)


@pytest.mark.parametrize("form", [FORMS["fused"], FORMS["written_out"]], ids=["fused", "plain"])
def test_exact_demand_keeps_keys_and_values_whole(form: object) -> None:
    """Nothing is cut: the queries' product is on the anchors, the others are whole."""
    _, program = plain_captured(form)  # type: ignore[arg-type]
    graph = program.blocks[0].body.graph
    parts = dict.fromkeys(results(graph), Frames((0, 2, 4), 5))
    demand = analyse(graph, parts)
    attention = self_attentions(graph)[0]
    tokens = [d for d, a in enumerate(axes_of(attention.value)) if a is not None]
    assert all((attention.value, d) not in demand.frames for d in tokens)
    assert demand.sparse(attention.result)
    assert not demand.barriers
    cut = analyse(graph, parts, graph.nodes)
    linears = [n for n in graph.nodes if n.target is torch.ops.aten.linear.default]
    framed = [n for n in linears if carries_frames(n)]
    assert all(cut.sparse(n) for n in framed)
