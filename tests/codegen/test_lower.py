"""Lowered and compiled Programs against the Programs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.utils import counters

import fisopt
from fisopt import FrameInterleave, Program
from fisopt.codegen.compile import compile_program
from fisopt.codegen.lower import lower
from fisopt.rewrite.ops import operator as table
from fisopt.rewrite.tracing.inputs import Inputs, bind
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS
from tests.zoo import Case, cases, zoo

TOLERANCE = 1e-5
OPTIONS = {
    "dense": None,
    "block": FrameInterleave(stride=2),
    "block, all": FrameInterleave(stride=3, kv="all", fill="state"),
    "attention": FrameInterleave(stride=2, scope="attention", kv="all"),
}


def tensors(program: Program, kwargs: dict[str, Any]) -> list[Tensor]:
    return [x for _, x in Inputs.of(bind(program.source.model, (), kwargs)).tensors()]


def rewritten(program: Program, step: FrameInterleave | None) -> Program:
    return program if step is None else step(program).program


def assert_close(got: Sequence[Any], want: Sequence[Any]) -> None:
    for x, y in zip(got, want, strict=True):
        assert float((x - y).abs().max()) <= TOLERANCE


@cases()
@pytest.mark.parametrize("step", OPTIONS.values(), ids=OPTIONS)
def test_lowered_equals_the_program(
    case: Case, program: Program, step: FrameInterleave | None
) -> None:
    sparse = rewritten(program, step)
    module = lower(sparse)
    values = tensors(program, case.inputs(5, 3, 4, batch=2))
    with torch.no_grad():
        assert_close(module(*values), sparse.graph_module(*values))
    for _, callee in module.named_children():
        for node in callee.graph.nodes if isinstance(callee, fx.GraphModule) else ():
            assert node.op != "call_module"
            assert getattr(node.target, "namespace", "") != "fisopt"
    assert {id(p) for p in module.parameters()} == {id(p) for p in case.model.parameters()} & {
        id(p) for p in program.graph_module.parameters()
    }


def test_opaque_operators_stay_calls(wan: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = torch.ops.fisopt.fill_frames.default
    sparse = FrameInterleave()(wan).program
    monkeypatch.setitem(table._OPERATORS, fill, replace(table._OPERATORS[fill], opaque=True))
    module = lower(sparse)
    left = [
        node.target
        for _, callee in module.named_children()
        for node in (callee.graph.nodes if isinstance(callee, fx.GraphModule) else ())
        if getattr(node.target, "namespace", "") == "fisopt"
    ]
    assert set(left) == {fill}
    values = tensors(wan, zoo()["wan"].inputs(5, 3, 4, batch=2))
    with torch.no_grad():
        assert_close(module(*values), sparse.graph_module(*values))


def distinct_stages(module: fx.GraphModule) -> int:
    return len({str(n.target) for n in module.graph.nodes if n.op == "call_module"})


def test_stages_are_shared(wan: Program) -> None:
    """Head and tail once, and each distinct block once: two anchor counts are two blocks."""
    assert distinct_stages(lower(wan)) == 3
    assert distinct_stages(lower(FrameInterleave(blocks=":")(wan).program)) == 4
    assert distinct_stages(lower(FrameInterleave(blocks="2:")(wan).program)) == 5


def test_one_compile_a_stage_and_no_recompile(
    wan: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, prompts and guidance branches run what the first call compiled."""
    case = zoo()["wan"]
    real = torch.compile
    monkeypatch.setattr(torch, "compile", partial(real, backend="aot_eager"))
    model = fisopt.optimize(wan, passes=[FrameInterleave(blocks=":", steps="1:")])
    inputs = case.inputs(5, 3, 4, batch=2)
    torch._dynamo.reset()
    counters.clear()

    def generate(seed: int) -> None:
        for step, time in enumerate((900, 600, 300)):
            for branch in ("cond", "uncond"):
                call = case.inputs(5, 3, 4, batch=2, seed=seed + len(branch))
                call["timestep"] = torch.full_like(inputs["timestep"], time)
                with model.cache_context(branch, step_index=step, num_inference_steps=3):
                    model(**call)

    generate(0)
    stages = sum(variant.stages for variant in model.report.variants)
    assert len(model.report.variants) == 2
    assert counters["stats"]["unique_graphs"] == stages == 3 + 4 - 1, "both have the same tail"
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(1)
    assert counters["stats"]["unique_graphs"] == stages


def test_inductor() -> None:
    model, program = plain_captured(FORMS["text_behind"])
    sparse = FrameInterleave()(program).program
    runs = compile_program(sparse, "inductor")
    values = tensors(program, plain_dit.inputs(FORMS["text_behind"], 5, 2, 3, batch=2))
    with torch.no_grad():
        assert_close(runs(*values), sparse.graph_module(*values))
    assert {id(p) for p in model.parameters()} >= {id(p) for p in sparse.graph_module.parameters()}


def test_eager_backend_runs_the_graph_itself(wan: Program) -> None:
    values = [x for _, x in wan.inputs.tensors()]
    got, want = compile_program(wan, "eager")(*values), wan.graph_module(*values)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_depth_adds_no_stages() -> None:
    """Twelve blocks compile as many graphs as two do, so that compile time does not grow."""
    form, grid = FORMS["fused"], (5, 2, 3)
    inputs = plain_dit.inputs(form, *grid)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=grid)
    counts = []
    for layers in (2, 12):
        model = plain_dit.PlainDiT(form, layers=layers).eval().requires_grad_(False)
        program = fisopt.capture(model, inputs, spec=spec)
        sparse = FrameInterleave(stride=4, blocks=":")(program).program
        counts.append((distinct_stages(lower(program)), distinct_stages(lower(sparse))))
        assert len(program.blocks) == layers
    assert counts[0] == counts[1]
