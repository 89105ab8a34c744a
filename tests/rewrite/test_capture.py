"""Captured Programs against the models they came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fisopt
from fisopt import Program, TokenLayout
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.tracing.block_paths import matches
from fisopt.rewrite.tracing.frame_dims import resize
from fisopt.rewrite.tracing.inputs import Inputs
from tests import plain_dit
from tests.conftest import captured, plain_captured
from tests.plain_dit import FORMS, Form
from tests.zoo import Case, zoo

TOLERANCE = 1e-5
SHAPES = {
    "as captured": (5, 3, 4, 2),
    "more frames": (7, 3, 4, 2),
    "turned": (5, 4, 3, 2),
    "one video": (7, 3, 4, 1),
    "one video, turned": (5, 4, 3, 1),
}
every_case = pytest.mark.parametrize("case", zoo().values(), ids=zoo())


def eager(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs)


def assert_equal(got: Any, want: Any, what: object) -> None:
    assert type(got) is type(want)
    mine, structure = pytree.tree_flatten(got)
    theirs, wanted = pytree.tree_flatten(want)
    assert structure == wanted
    for x, y in zip(mine, theirs, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert float((x - y).abs().max()) <= TOLERANCE, what


@every_case
def test_equals_the_model(case: Case, program: Program) -> None:
    for what, (frames, height, width, batch) in SHAPES.items():
        inputs = case.inputs(frames, height, width, batch=batch)
        want = eager(case.model_for(frames), inputs)
        assert_equal(program.at(inputs)(**inputs), want, what)


def test_a_size_that_is_baked_in_is_noticed() -> None:
    """What a model computes of a size of its example does not serve another size."""

    class Baked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, video: Tensor) -> Tensor:
            rows = torch.linspace(0, 1, video.shape[3])[:, None]
            video = video + rows
            for layer in self.layers:
                video = video + layer(video)
            return video

    model = Baked().eval().requires_grad_(False)
    inputs = {"video": torch.randn(1, 5, 2, 3, 4)}

    def grid(call: Any) -> tuple[int, int, int]:
        return tuple(call["video"].shape[1:4])

    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=grid)
    program = fisopt.capture(model, inputs, spec=spec)
    for shape in ((1, 5, 2, 5, 4), (1, 7, 2, 3, 4), (1, 4, 3, 6, 4), (1, 6, 3, 6, 4)):
        inputs = {"video": torch.randn(shape)}
        torch.testing.assert_close(program.at(inputs)(**inputs), model(**inputs))


@every_case
def test_structure(case: Case, program: Program) -> None:
    """One call a block, in execution order, with frames on it; equal blocks share a graph."""
    order: list[nn.Module] = []
    wanted = {
        module: name
        for name, module in case.model.named_modules()
        if matches(name, case.family.blocks)
    }
    handles = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in wanted]
    eager(case.model, case.inputs(5, 3, 4, batch=2))
    for handle in handles:
        handle.remove()
    assert [c.path for c in program.blocks] == [wanted[m] for m in order]
    assert len({str(c.call.target) for c in program.blocks}) < len(program.blocks)
    assert program.layout.tokens == 60
    for block in program.blocks:
        body = block.body
        assert not [n for n in body.graph.nodes if n.op == "get_attr"]
        assert any(map(carries_frames, results(body.graph)))
    fisopt.verify(program)


@every_case
def test_shares_parameters(case: Case, program: Program) -> None:
    own = {id(p) for p in case.model.parameters()}
    held = dict(program.graph_module.named_parameters())
    assert held
    assert {id(p) for p in held.values()} <= own
    before = {n: p.clone() for n, p in case.model.named_parameters()}
    hooks = [len(m._forward_hooks) for m in case.model.modules()]
    program(**case.inputs(5, 3, 4, batch=2))
    assert hooks == [len(m._forward_hooks) for m in case.model.modules()]
    for name, parameter in case.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@every_case
def test_optimize_without_passes(case: Case, program: Program) -> None:
    model = fisopt.optimize(program, passes=[], backend="eager")
    for frames, height, width, batch in SHAPES.values():
        if frames != 5 and case.frames_key is not None:
            continue
        inputs = case.inputs(frames, height, width, batch=batch)
        assert_equal(model(**inputs), eager(case.model, inputs), (frames, height, width, batch))
    assert model.original is case.model


@pytest.mark.parametrize("case", [zoo()["wan"], zoo()["mochi"]], ids=["wan", "mochi"])
def test_return_type(case: Case) -> None:
    inputs = {**case.inputs(5, 3, 4), "return_dict": True}
    program = fisopt.capture(case.model, inputs)
    assert_equal(program(**inputs), eager(case.model, inputs), case.name)
    assert program(**inputs).sample is not None


def test_a_shape_is_traced_once(wan: Program) -> None:
    """At its own frames, and once more to see where they are; never again."""
    tracer, inputs = wan.source.tracer, zoo()["wan"].inputs(8, 5, 3, batch=2)
    before = tracer.traces
    for _ in range(2):
        wan.at(inputs)
    assert tracer.traces == before + 2


def test_text_length_is_open(wan: Program) -> None:
    case = zoo()["wan"]
    inputs = case.inputs(5, 3, 4, batch=2)
    inputs["encoder_hidden_states"] = torch.randn(2, 20, 16)
    assert_equal(wan.at(inputs)(**inputs), eager(case.model, inputs), "text")


def test_one_program_per_shape(wan: Program) -> None:
    case = zoo()["wan"]
    inputs = case.inputs(6, 3, 4, batch=2)
    assert wan.at(inputs) is wan.at(case.inputs(6, 3, 4, batch=2, seed=1))
    assert wan.resized(6).layout.frames == 6


def test_tokens_of_a_frame_follow_the_resolution() -> None:
    """An input with a row for every token grows by the tokens of its own frames."""
    case = zoo()["wan_ti2v"]
    inputs = {k: v for k, v in case.inputs(5, 5, 4, batch=2).items() if k != "return_dict"}
    dims = captured("wan_ti2v").source.frame_dims
    wider = resize(Inputs.of(inputs), dims, TokenLayout(5, 5, 4), TokenLayout(7, 5, 4)).kwargs()
    assert wider["timestep"].shape == (2, 7 * 5 * 4)
    assert wider["hidden_states"].shape == case.inputs(7, 5, 4, batch=2)["hidden_states"].shape


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_plain_model(form: Form) -> None:
    """No adapter: blocks by pattern, grid by numbers; the rest is found."""
    model, program = plain_captured(form)
    assert len(program.blocks) == 3
    assert len({str(c.call.target) for c in program.blocks}) == 1
    for frames, batch in ((5, 2), (7, 2), (4, 1)):
        inputs = plain_dit.inputs(form, frames, 2, 3, batch=batch)
        assert_equal(program.at(inputs)(**inputs), eager(model, inputs), (frames, batch))


def test_tensors_of_the_model_are_traced_once(wan: Program) -> None:
    names = [n for n, _ in wan.graph_module.named_parameters()]
    assert len(names) == len(set(names))
    assert isinstance(wan.graph_module.get_parameter(names[0]), Tensor)
