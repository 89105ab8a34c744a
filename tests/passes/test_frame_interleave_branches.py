"""FrameInterleave with a stride for each branch, against a plain loop; and rotation over steps."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import FrameInterleave, PassManager, PreconditionError, Step
from fisopt.errors import FisoptError
from tests.conftest import plain_captured
from tests.passes.test_frame_interleave_plain import Loop
from tests.plain_dit import FORMS, Form, Layer, PlainDiT
from tests.zoo import Case, cases

KINDS = ("self_attention", "cross_attention", "feed_forward")


def kept_at(stride: int, place: int, frames: int) -> list[int]:
    return [f for f in range(frames) if f % stride == place % stride or f in (0, frames - 1)]


class Branches(Loop):
    """The layers of a PlainDiT with each branch on frames of its own."""

    def branches(self, layer: Layer, place: int, index: int, args: tuple[Any, ...]) -> Tensor:
        x, text, time, angles = args
        if self.form.rotary != "given":
            angles = torch.arange(self.frames * self.inner)[:, None] * layer.frequencies
        where = (
            slice(0, text.shape[1]) if self.form.text == "front" else slice(-text.shape[1], None)
        )
        each = {kind: self.options[kind] for kind in KINDS}
        strides = {k: v[index] if isinstance(v, tuple) else v for k, v in each.items()}
        kept = {k: kept_at(stride, place, self.frames) for k, stride in strides.items()}
        shift, scale = layer.modulation(time).chunk(2, dim=-1)
        y = layer.norm1(x) * (1 + scale) + shift
        rows = self.rows(kept["self_attention"])
        if self.options["kv"] == "all":
            update = layer.attend(y, y, angles, where)[:, rows]
        else:
            own = angles[self.rows(kept["self_attention"], video_only=True)]
            update = layer.attend(y[:, rows], y[:, rows], own, where)
        x = x + self.fill(None, update, kept["self_attention"], 1)
        if layer.cross is not None:
            update = layer.cross(x[:, self.rows(kept["cross_attention"])], text, None, where)
            x = x + self.fill(None, update, kept["cross_attention"], 1)
        update = layer.mlp(layer.norm2(x[:, self.rows(kept["feed_forward"])]))
        return x + self.fill(None, update, kept["feed_forward"], 1)


def looped(model: PlainDiT, inputs: dict[str, Any], frames: int, **options: Any) -> Tensor:
    inner = inputs["video"].shape[1] // frames
    loop = Branches(model.form, frames, inner, inputs["text"].shape[1], options)
    with ExitStack() as stack, torch.no_grad():
        for index, layer in enumerate(model.layers):

            def run(*args: Any, layer: Any = layer, index: int = index) -> Tensor:
                return loop.branches(layer, index + options.get("shift", 0), index, args)

            stack.enter_context(mock.patch.object(layer, "forward", run))
        output: Tensor = model(**inputs)["video"]
    return output


CASES = [
    ("fused", (2, 1, 3), "all", "residual"),
    ("fused", (1, 2, 2), "anchors", "residual"),
    ("per_token", ((2, 1, 3), 1, (1, 1, 2)), "anchors", "residual"),
    ("written_out", (3, 2, 1), "anchors", "carry"),
    ("arange_inside", (2, 1, 1), "anchors", "residual"),
    ("text_in_front", (2, 1, 3), "anchors", "residual"),
    ("text_behind", (3, 1, 2), "all", "residual"),
]


@pytest.mark.parametrize(("name", "strides", "kv", "fill"), CASES)
def test_equals_plain_loop(name: str, strides: tuple[Any, ...], kv: str, fill: str) -> None:
    model, program = plain_captured(FORMS[name])
    inputs = program.inputs.kwargs()
    options = dict(zip(KINDS, strides, strict=True)) | {"kv": kv, "fill": fill, "shift": 1}
    step = FrameInterleave(blocks=":", **options)  # type: ignore[arg-type]
    got = PassManager([step]).run(program)(**inputs)["video"]
    want = looped(model, inputs, 5, **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, program(**inputs)["video"], atol=1e-3)


def test_branches_that_agree_are_the_whole_block() -> None:
    _, program = plain_captured(FORMS["fused"])
    named = dict.fromkeys(KINDS, 2)
    whole = FrameInterleave(blocks=":")(program).program
    branches = FrameInterleave(blocks=":", **named)(program).program  # type: ignore[arg-type]
    assert fisopt.format_graph(branches) == fisopt.format_graph(whole)


def test_a_stride_and_keys_for_each_block() -> None:
    _, program = plain_captured(FORMS["fused"])
    each = FrameInterleave(
        stride=1, self_attention=(1, 2, 2), kv=("all", "all", "anchors"), blocks=":"
    )(program)
    one = FrameInterleave(stride=1, self_attention=2, kv="all", shift=1, blocks="1:2")(program)
    graphs = [p.program.block("layers.1").body.graph for p in (each, one)]
    assert str(graphs[0]) == str(graphs[1])
    assert each.program.block("layers.0").body is program.block("layers.0").body
    assert each.notes[-1].startswith("2 of 3 blocks sparse on 3 or 4 of 5 latent frames")


def test_anchors_rotate_over_steps() -> None:
    step = FrameInterleave(stride=2, feed_forward=3, rotate="steps", steps="1:")
    assert step.stepwise
    assert step.at(Step(0, 9)) is None
    shifts = [one.shift for i in range(1, 9) if isinstance(one := step.at(Step(i, 9)), type(step))]
    assert shifts == [1, 2, 3, 4, 5, 0, 1, 2]
    assert step.at(Step(2)) == FrameInterleave(stride=2, feed_forward=3, shift=2)
    whole = FrameInterleave(stride=2)
    assert not whole.stepwise
    assert whole.at(Step(3)) == whole


def test_rotation_in_a_generation() -> None:
    model, program = plain_captured(FORMS["fused"])
    inputs = program.inputs.kwargs()
    passes = [FrameInterleave(stride=2, rotate="steps", blocks=":")]
    fast = fisopt.optimize(program, passes, backend="eager")
    options = dict.fromkeys(KINDS, 2) | {"kv": "anchors", "fill": "residual"}
    for index in range(3):
        with fast.cache_context("", step_index=index, num_inference_steps=3):
            got = fast(**inputs)["video"]
        want = looped(model, inputs, 5, **options, shift=index)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_attention": 0}, "self_attention must be an int of at least 1, or a list of such"),
        ({"feed_forward": (2, "3")}, r"feed_forward must be .* got \(2, '3'\)"),
        ({"cross_attention": ()}, "cross_attention must be"),
        ({"kv": ("all", "some")}, "kv must be 'anchors' or 'all', or a list"),
        ({"rotate": "frames"}, "rotate must be one of"),
        ({"shift": -1}, "shift must be an int of at least 0"),
        ({"scope": "attention", "feed_forward": 2}, "both set which part of a block is sparse"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FisoptError, match=message):
        FrameInterleave(**options)


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (FORMS["fused"], {"self_attention": (1, 2)}, "self_attention is given for 2 blocks"),
        (FORMS["fused"], {"kv": ("all",) * 4}, "kv is given for 4 blocks, the model has 3"),
        (FORMS["fused"], {"feed_forward": (1, 1, 9)}, "stride 9 is more than the 5 latent frames"),
        (FORMS["post_norm"], {"feed_forward": 1}, "no residual branch was found in it"),
    ],
)
def test_refusals(form: Form, options: dict[str, Any], message: str) -> None:
    _, program = plain_captured(form)
    with pytest.raises(PreconditionError, match=message):
        FrameInterleave(**options)(program)


@cases()
def test_every_family_has_branches(case: Case, program: fisopt.Program) -> None:
    inputs = case.inputs(5, 3, 4, batch=2)
    dense = program(**inputs)[0]
    costs = [fisopt.predicted_ratio(program, program)]
    for feed_forward in (1, 2):
        step = FrameInterleave(stride=1, self_attention=2, feed_forward=feed_forward, blocks=":")
        rewritten = PassManager([step]).run(program)
        got = rewritten(**inputs)[0]
        assert got.shape == dense.shape
        assert 1e-3 < float((got - dense).norm() / dense.norm()) < 0.5
        costs.append(fisopt.predicted_ratio(program, rewritten))
    assert costs == sorted(costs)
    assert costs[0] < costs[1]
