"""Artefacts run without the model's code: torch alone, or onnxruntime and numpy alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, fx

import fisopt
from fisopt import FrameInterleave, Pass, SlidingWindow, TileAttention, TokenReduction
from fisopt.artefact import onnx
from fisopt.artefact.loader import examined
from fisopt.artefact.onnx_operators import RULES
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import rewrite
from tests.artefact.fresh import differences, keep_call, process
from tests.artefact.models import plain
from tests.conftest import captured
from tests.zoo import Case, forms

PASSES: dict[str, list[Pass]] = {
    "none": [],
    "FrameInterleave": [FrameInterleave()],
    "TokenReduction": [TokenReduction(0.4, 0.3, mode="mean")],
    "TileAttention": [TileAttention(SlidingWindow(1))],
    "both": [FrameInterleave(), TileAttention(2)],
}


@pytest.mark.parametrize("kind", ["pt2 portable", "pt2 native"])
def test_pt2(kind: str, tmp_path: Path) -> None:
    files = []
    for name, passes in PASSES.items():
        model, inputs = plain(passes)
        file = tmp_path / f"{name}.pt2"
        fisopt.export(model, file, portable=kind == "pt2 portable", dynamic=False)
        keep_call(model, inputs, file)
        files.append(file)
    assert all(isinstance(d, float) and d <= 1e-5 for d in differences(kind, files))
    if kind == "pt2 native":
        code = """
import sys, torch
try:
    torch.export.load(sys.argv[1])
except Exception:
    print("refused")
"""
        said = process(code, str(files[1]), warnings=True)
        assert said.startswith("refused")
        assert "fisopt" in said, "torch names the operator that it does not find"


@pytest.mark.parametrize("name", ["TokenReduction", "both"])
def test_onnx(name: str, tmp_path: Path) -> None:
    model, inputs = plain(PASSES[name])
    file = fisopt.export(model, tmp_path / "model.onnx", "onnx", dynamic=False)
    keep_call(model, inputs, file)
    (difference,) = differences("onnx", [file])
    assert isinstance(difference, float)
    assert difference <= 1e-4


def test_large_weights_go_to_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model of two gigabytes and more, at a limit that a small one reaches."""
    monkeypatch.setattr(onnx, "EXTERNAL_BYTES", 1)
    model, inputs = plain([])
    file = fisopt.export(model, tmp_path / "model.onnx", "onnx", dynamic=False)
    beside = tmp_path / "model.onnx.data"
    assert sorted(tmp_path.iterdir()) == [file, beside]
    assert beside.stat().st_size > 10_000
    with torch.no_grad():
        want = model(**inputs)["video"]
    torch.testing.assert_close(fisopt.load(file)(**inputs)["video"], want, rtol=0, atol=1e-4)
    fisopt.export(model, file, "onnx", dynamic=False, force=True)
    again = tmp_path / "model.onnx.1.data"
    assert sorted(tmp_path.iterdir()) == [file, again], "old and new never share a file of weights"
    torch.testing.assert_close(fisopt.load(file)(**inputs)["video"], want, rtol=0, atol=1e-4)


def legalised(module: fx.GraphModule) -> None:
    """Apply the rules to a graph that was written by hand, without values to check."""
    rewrite(GraphEditor(module.graph, "legalise"), RULES)
    module.recompile()


def test_choices_between_booleans_reach_onnx() -> None:
    """ONNX Runtime has no choice between booleans, which HunyuanVideo's mask needs."""
    graph = fx.Graph()
    c, a, b = (graph.placeholder(name) for name in "cab")
    for kind in (torch.bool, torch.float32):
        chosen = graph.call_function(torch.ops.aten.where.self, (c, a, b))
        chosen.meta["val"] = torch.ones(1, dtype=kind)
    graph.output(chosen.prev)
    module = fx.GraphModule({}, graph)
    legalised(module)
    targets = [n.target for n in module.graph.nodes if n.op == "call_function"]
    assert targets.count(torch.ops.aten.where.self) == 1, "the choice between numbers stays"
    every = torch.tensor(list(itertools.product([False, True], repeat=3))).T
    assert torch.equal(module(*every), torch.where(*every))


@pytest.mark.parametrize("value", [False, True])
def test_fills_of_booleans_reach_onnx(value: bool) -> None:
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    filled = graph.call_function(torch.ops.aten.masked_fill.Scalar, (x, mask, value))
    filled.meta["val"] = torch.ones(1, dtype=torch.bool)
    graph.output(filled)
    module = fx.GraphModule({}, graph)
    legalised(module)
    assert torch.ops.aten.masked_fill.Scalar not in {n.target for n in module.graph.nodes}
    every = torch.tensor(list(itertools.product([False, True], repeat=2))).T
    assert torch.equal(module(*every), every[0].masked_fill(every[1], value))


def test_squeezes_that_change_nothing_are_left_out_for_onnx() -> None:
    """ATen lets a dimension that is not one be; ONNX refuses to squeeze it."""
    graph, x = fx.Graph(), torch.rand(2, 1, 3)
    node = graph.placeholder("x")
    node.meta["val"] = x
    for dim in (0, 1):
        node = graph.call_function(torch.ops.aten.squeeze.dim, (node, dim))
        node.meta["val"] = x if dim == 0 else x[:, 0]
    graph.output(node)
    module = fx.GraphModule({}, graph)
    legalised(module)
    left = [n.args[1] for n in module.graph.nodes if n.target is torch.ops.aten.squeeze.dim]
    assert left == [1]
    assert torch.equal(module(x), x[:, 0])


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("places", [False, True])
def test_sorts_for_onnx_keep_the_order_of_equals(
    descending: bool, places: bool, tmp_path: Path
) -> None:
    class Order(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if places:
                return x.to(torch.uint8).argsort(dim=-1, descending=descending, stable=True)
            return x.sort(dim=-1, descending=descending, stable=True)[1]

    x = torch.randint(0, 3, (2, 40)).float()
    program = torch.export.export(Order(), (x,)).run_decompositions({})
    module = program.module()
    for node in module.graph.nodes:
        node.meta.setdefault("val", x.to(torch.uint8) if "to_copy" in node.name else x)
    legalised(module)
    assert torch.ops.aten.topk.default in {n.target for n in module.graph.nodes}
    made = onnx.convert(torch.export.export(module, (x,)), ["order"])
    onnx.write(made, tmp_path / "order.onnx", "order.onnx.data")
    session = onnxruntime.InferenceSession(tmp_path / "order.onnx")
    name = made.model.graph.inputs[0].name
    assert torch.equal(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), Order()(x))


@pytest.mark.parametrize("case", forms().values(), ids=forms())
def test_every_family(case: Case, tmp_path: Path, exhaustive: bool) -> None:
    """In full: every family with every pass in every format; else HunyuanVideo's mask in ONNX."""
    if not exhaustive and case.name != "hunyuan_video":
        pytest.skip("--exhaustive")
    program, inputs = captured(case.name), case.inputs(5, 3, 4, batch=2)
    kinds = ["pt2 portable", "pt2 native", "onnx"] if exhaustive else ["onnx"]
    if case.name == "wan_animate":
        kinds.remove("onnx")  # torch.onnx has no linalg.qr, which its motion encoder runs
    for kind in kinds:
        files = []
        for name, passes in PASSES.items() if exhaustive else [("both", PASSES["both"])]:
            model = fisopt.optimize(program, passes, inputs, backend="eager", strict=False)
            file = tmp_path / f"{name}{'.onnx' if kind == 'onnx' else '.pt2'}"
            form, portable = kind.partition(" ")[0], kind != "pt2 native"
            fisopt.export(model, file, form, portable, dynamic=False, force=True)
            keep_call(model, inputs, file)
            files.append(examined(file).path)
        limit = 1e-4 if kind == "onnx" else 1e-5
        for file, found in zip(files, differences(kind, files), strict=True):
            assert isinstance(found, float), f"{file.name}: {found}"
            assert found <= limit, f"{file.name}: {found}"
