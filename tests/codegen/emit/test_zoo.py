"""The kernels of every family: which there are, and that each computes what eager does.

The lists are in ``expected/``; delete a file and run the test to have it written anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import fx

from fisopt import FrameInterleave, Program
from fisopt.codegen.emit import launch
from fisopt.codegen.emit.kernel import Kernel
from fisopt.codegen.emit.region import Region
from fisopt.codegen.emit.stage import with_kernels
from fisopt.codegen.lower import lower
from fisopt.rewrite.tracing.inputs import Inputs, bind
from tests.codegen.emit.interpreter import Interpreter
from tests.codegen.emit.regions import as_dtype, emitted, one_program, operands, reference, taken
from tests.conftest import GRID, captured
from tests.zoo import Case, cases, zoo

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
ALWAYS = ("wan", "hunyuan_video", "cogvideox_5b", "mochi")
EXPECTED = Path(__file__).parent / "expected"

by_case = cases(*ALWAYS)


@cache
def sparse(name: str) -> Program:
    """A model of which every block is sparse."""
    return FrameInterleave(stride=2, blocks=":")(captured(name)).program


@cache
def kernels(name: str) -> list[tuple[Kernel, Region]]:
    """Its kernels, in execution order."""
    return list(emitted(sparse(name)).values())


def distinct(found: list[tuple[Kernel, Region]]) -> list[tuple[Kernel, Region]]:
    """One of the kernels that differ in sizes alone."""
    forms = {}
    for kernel, region in found:
        operators = (str(node.target) for node in region.graph.graph.nodes)
        forms.setdefault((kernel.name.rsplit("_", 1)[0], *operators), (kernel, region))
    return list(forms.values())


@by_case
def test_which_kernels_there_are(case: Case) -> None:
    name = case.name
    lines = [f"{k.name.rsplit('_', 1)[0]}: {k.summary}" for k, _ in kernels(name)]
    text = "".join(f"{line}\n" for line in sorted(set(lines)))
    path = EXPECTED / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path} was missing and is written; check it and run again")
    assert text == path.read_text()
    words = text.split()
    assert any("fill" in word.rstrip(":").split("_") for word in words), "no block exit"


@by_case
def test_kernels_equal_eager(case: Case, triton_interpreter: Interpreter, exhaustive: bool) -> None:
    """Every form, over operands that are strided in different ways; exhaustively every size."""
    found = kernels(case.name)
    assert found
    for kernel, region in found if exhaustive else distinct(found):
        for dtype, tolerance in TOLERANCES.items():
            values = operands(kernel, region, dtype)
            got = triton_interpreter.launch(as_dtype(kernel, dtype), values, one_program(kernel))
            for x, y in zip(got, reference(kernel, region, values), strict=True):
                error = (x.float() - y.float()).abs().max() / y.float().abs().max().clamp(min=1)
                assert error <= tolerance, f"{kernel.summary}\n{kernel.source}"


def with_every_kernel(program: Program) -> fx.GraphModule:
    """A lowered Program with all of its kernels in place."""
    module = lower(program)
    for target, stage in list(module.named_children()):
        if isinstance(stage, fx.GraphModule):
            chosen = [(region, kernel, one_program(kernel)) for region, kernel in taken(stage)]
            setattr(module, target, with_kernels(stage, chosen))
    return module


def assert_unchanged(program: Program, case: Case) -> None:
    inputs = Inputs.of(bind(case.model, (), case.inputs(*GRID, batch=2)))
    values = [x for _, x in inputs.tensors()]
    module = with_every_kernel(program)
    with torch.no_grad():
        for got, want in zip(module(*values), program.graph_module(*values), strict=True):
            assert float((got - want).abs().max()) <= 1e-4


@pytest.fixture
def interpreted(triton_interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emitted kernels run in the interpreter."""
    monkeypatch.setattr(launch, "launch", triton_interpreter.launch)


@by_case
@pytest.mark.usefixtures("interpreted")
def test_a_model_with_every_kernel_in_place(case: Case) -> None:
    """Regions are found so that they can be taken out: the whole model computes the same."""
    assert_unchanged(sparse(case.name), case)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "step",
    [
        None,
        FrameInterleave(stride=3, kv="all", fill="state"),
        FrameInterleave(stride=2, scope="attention", kv="all"),
        FrameInterleave(stride=2, fill="carry"),
    ],
    ids=str,
)
def test_every_form_of_a_pass(wan: Program, step: FrameInterleave | None) -> None:
    assert_unchanged(wan if step is None else step(wan).program, zoo()["wan"])
