"""TileAttention on models that are not of diffusers: written-out attention, text, odd operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import ModelSpec, Pass, PassManager, PreconditionError, Program, TileAttention, TileMask
from fisopt.codegen.compile import compile_program
from fisopt.codegen.lower import lower
from fisopt.passes.tiling.tiled_block import TILE
from fisopt.rewrite.analysis.structure import self_attentions
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.rewriter import Rewriter
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS, Form
from tests.tiles import dense, explicit

GRID = (5, 2, 3)
WIDTH = 8
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def oracle(model: plain_dit.PlainDiT, form: Form, inputs: dict[str, Any], mask: TileMask) -> Tensor:
    """The model's own attention with softmax under the explicit mask, where video meets video."""
    frames, tokens, text = GRID[0], GRID[1] * GRID[2], inputs["text"].shape[1]
    sides = {"cross": (0, 0), "front": (text, 0), "behind": (0, text)}[form.text]
    axis = FrameAxis(frames, 1, tokens, *sides)
    kept = explicit(mask.table(frames), axis, axis)

    def mix(self: plain_dit.Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole = torch.ones(1, q.shape[-2], k.shape[-2], dtype=torch.bool)
        return dense(q, k, v, kept if q.shape[-2] == k.shape[-2] == axis.size else whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_dit.Attention, "mix", mix)
        output: Tensor = model(**inputs)["video"]
    return output


@every_form
def test_equals_the_explicit_mask(form: Form) -> None:
    model, program = plain_captured(form)
    inputs = plain_dit.inputs(form, *GRID, batch=2)
    for k in (1, 2, 3):
        got = PassManager([TileAttention(k)]).run(program)(**inputs)["video"]
        want = oracle(model, form, inputs, TileMask(k))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        if k < 3:
            assert not torch.allclose(want, program(**inputs)["video"], atol=1e-4)


def test_the_note_says_how_many_frames_are_global() -> None:
    """Of the frames that an attention sees: inside a sparse block those are the anchors."""
    _, program = plain_captured(FORMS["fused"])
    program = program.at(plain_dit.inputs(FORMS["fused"], 9, 2, 3, batch=2))
    assert "TileMask(k=4) (3 of 9 frames global)" in TileAttention(4)(program).notes[-1]
    sparse = fisopt.FrameInterleave(stride=2, blocks=":1")(program).program
    note = TileAttention(3)(sparse).notes[-1]
    assert "TileMask(k=3) (3 of 5 frames global), TileMask(k=3) (3 of 9 frames global)" in note


@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_compiled(backend: Any) -> None:
    """One call an attention in the lowered graph; the plan is an argument, so blocks share it."""
    form = FORMS["text_in_front"]
    model, program = plain_captured(form)
    inputs = plain_dit.inputs(form, *GRID, batch=2)
    sparse = TileAttention(1)(program).program
    lowered = lower(sparse)
    calls = [
        [n.target for n in callee.graph.nodes].count(TILE)
        for _, callee in lowered.named_children()
        if isinstance(callee, torch.fx.GraphModule)
    ]
    assert sorted(calls) == [0, 0, 1]
    compiled: dict[Any, Any] = {}
    run = compile_program(sparse, backend, compiled)
    with torch.no_grad():
        (got,) = run(*program.values(inputs))
    torch.testing.assert_close(got, oracle(model, form, inputs, TileMask(1)), rtol=0, atol=1e-5)
    assert len(compiled) == (3 if backend == "inductor" else 0)


class Layer(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.out, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), mix

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.mix(self.norm(x)))


def captured(mix: Callable[[Tensor], Tensor]) -> tuple[Program, Tensor]:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(mix) for _ in range(2))

        def forward(self, video: Tensor) -> Tensor:
            for layer in self.layers:
                video = layer(video)
            return video

    x = torch.randn(1, math.prod(GRID), WIDTH)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    return fisopt.capture(Model().eval().requires_grad_(False), {"video": x}, spec=spec), x


AXIS = FrameAxis(GRID[0], inner=GRID[1] * GRID[2])


def three(y: Tensor) -> list[Tensor]:
    """Queries, keys and values [B, N, C]."""
    return [y * 1.5, y + 0.3, y.tanh()]


def bias(y: Tensor) -> Tensor:
    """A number for every key, [B, 1, N]."""
    return 2 * y[..., :1].mT


def seen(y: Tensor) -> Tensor:
    return y[..., 1:2].mT > -0.5


def biased(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.transpose(-1, -2) * 0.4 + bias(y)).softmax(-1) @ v


def divided(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return torch.bmm((torch.bmm(q, k.mT) / 2.0).float().softmax(dim=-1).to(y), v)


def masked(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen(y), scale=0.4)


def hidden(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.mT * 0.4).masked_fill(~seen(y), float("-inf")).softmax(-1) @ v


def low(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.mT * 0.4).masked_fill(~seen(y), -1e9).softmax(-1) @ v


def chosen(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return torch.where(seen(y), q @ k.mT * 0.4, float("-inf")).softmax(-1) @ v


def chosen_low(y: Tensor) -> Tensor:
    q, k, v = three(y)
    lowest = torch.full((), torch.finfo(y.dtype).min)
    return torch.where(~seen(y), lowest, q @ k.mT * 0.4).softmax(-1) @ v


Mask = Callable[[Tensor], Tensor] | None
WANT: dict[Callable[[Tensor], Tensor], tuple[float, Mask]] = {
    biased: (0.4, bias),
    divided: (0.5, None),
    masked: (0.4, seen),
    hidden: (0.4, seen),
    low: (0.4, seen),
    chosen: (0.4, seen),
    chosen_low: (0.4, seen),
}


@pytest.mark.parametrize("mix", WANT, ids=lambda mix: mix.__name__)
def test_scales_and_masks(mix: Callable[[Tensor], Tensor]) -> None:
    program, x = captured(mix)
    scale, mask = WANT[mix]
    kept = explicit(TileMask(1).table(GRID[0]), AXIS, AXIS)
    want = x
    model: Any = program.source.model
    for layer in model.layers:
        y = layer.norm(want)
        heads = [part[:, None] for part in three(y)]
        extra = None if mask is None else mask(y)[:, None]
        want = want + layer.out(dense(*heads, kept, extra, scale)[:, 0])
    got = TileAttention(1)(program).program(video=x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert not torch.allclose(got, program(video=x), atol=1e-3)


def causal(y: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*three(y), is_causal=True)


def dropped(y: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*three(y), dropout_p=0.1)


def shaped(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.mT).sigmoid().softmax(-1) @ v


def faint(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.mT).masked_fill(seen(y), -3.0).softmax(-1) @ v


def over_queries(y: Tensor) -> Tensor:
    q, k, v = three(y)
    return (q @ k.mT).softmax(-2) @ v


def shared(y: Tensor) -> Tensor:
    """Queries of all tokens, keys and values of the first frame only."""
    q, k, v = three(y)
    return functional.scaled_dot_product_attention(q, k[:, :6], v[:, :6])


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (causal, r"has a causal flag \(True\)"),
        (dropped, r"has dropout \(0\.1\)"),
        (shaped, r"cannot be read: .*sigmoid.* between the scores and the softmax"),
        (faint, r"cannot be read: .*masked_fill.* puts a score that hides no key"),
        (over_queries, "softmax runs over dimension -2, not over the keys"),
        (shared, "no block has self-attention across frames"),
        (torch.tanh, "no block has self-attention across frames"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_refused(mix: Callable[[Tensor], Tensor], message: str) -> None:
    program, _ = captured(mix)
    with pytest.raises(PreconditionError, match=message):
        TileAttention(1)(program)


@fisopt.operator("fisopt::every_other", axes=lambda node: (None,) * node.meta["val"].ndim)
def every_other(x: Tensor) -> Tensor:
    """Half of the tokens, as a pass that drops tokens would leave."""
    return x[..., ::2, :].clone()


class DropKeys(Pass):
    """Attend to half of the keys: another pass that edits attention."""

    def run(self, rewriter: Rewriter) -> None:
        block = rewriter.program.blocks[0]
        (attention,) = self_attentions(block.body.graph)
        with rewriter.edit(block, name="short") as edit:
            node = edit.twin(attention.result)
            with edit.before(node):
                fewer = [edit.call(every_other, n) for n in node.args[1:3]]
            node.args = (node.args[0], *fewer)


def test_a_block_with_fewer_tokens_is_refused() -> None:
    program, x = captured(lambda y: functional.scaled_dot_product_attention(*three(y)))
    short = PassManager([DropKeys()]).run(program)
    message = r"layers\.0: DropKeys has edited the attention of this block \(fisopt\.every_other"
    with pytest.raises(PreconditionError, match=message):
        TileAttention(1)(short)
    other = TileAttention(1, blocks="1:")(short).program
    assert not torch.equal(other(video=x), short(video=x))
