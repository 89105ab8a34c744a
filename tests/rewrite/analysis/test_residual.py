"""The residual stream of a result, however a block writes and returns it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fisopt
from fisopt import FrameInterleave, ModelSpec, PassManager, Program, TokenReduction
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.rewrite.analysis.residual import residual_stream
from fisopt.rewrite.analysis.structure import residual_source, results, self_attentions
from fisopt.rewrite.tracing.composites import decompositions
from tests.rewrite.test_kinds_of_blocks import (
    FRAMES,
    GRID,
    INNER,
    WIDTH,
    Plain,
    call,
    fused,
    rows,
    spread,
    with_sparse_attention,
)

aten = torch.ops.aten
Write = Callable[[Tensor, Tensor], Tensor]
BACK = torch.tensor([3, 2, 1, 0])


def halves(x: Tensor, u: Tensor) -> Tensor:
    """A buffer filled by every second channel."""
    out, h = torch.empty_like(x), x + u
    out[..., ::2], out[..., 1::2] = h[..., ::2], h[..., 1::2]
    return out


def entries(x: Tensor, u: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(x.shape[-1]):
        out[..., i] = (x + u)[..., i]
    return out


def numbered(x: Tensor, u: Tensor) -> Tensor:
    out, h = torch.zeros_like(x), x + u
    for half in (BACK[:2], BACK[2:]):
        out[:, half] = h[:, half]
    return out


def part(x: Tensor, u: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += u[:, 1:]
    return x


MOVED: dict[str, Write] = {
    "a buffer by halves": halves,
    "a buffer by entries": entries,
    "a buffer by numbers": numbered,
    "a part in place": part,
    "copied": lambda x, u: torch.empty_like(x).copy_(x + u),
    "one of two": lambda x, u: torch.where(u > 0, x + u, x),
    "index_copy": lambda x, u: x.index_copy(1, BACK, x + u),
    "masked_scatter": lambda x, u: x.masked_scatter(u > 0, x + u),
    "masked_fill": lambda x, u: (x + u).masked_fill(u > 9, 0.0),
    "index_add": lambda x, u: x.index_add(1, BACK, u),
    "accumulated": lambda x, u: x.index_put((torch.arange(2),), u, accumulate=True),
    "subtracted": lambda x, u: x - u,
    "scaled": lambda x, u: torch.add(x, u, alpha=0.5),
    "gated": lambda x, u: torch.addcmul(x, u, u),
    "baddbmm": lambda x, u: torch.baddbmm(x, u, u.mT @ u),
    "clipped": lambda x, u: (x + u).clip(-65504, 65504),
    "rolled": lambda x, u: (x.roll(1, 1) + u).roll(-1, 1),
    "unbound": lambda x, u: torch.stack([t + 1 for t in (x + u).unbind(1)], 1),
    "padded": lambda x, u: (nn.functional.pad(x, (0, 0, 0, 2)) + 1)[:, :4] + u,
    "permuted": lambda x, u: (x[:, BACK] + u)[:, BACK],
}
NOT_MOVED: dict[str, Write] = {
    "one entry for all": lambda x, u: x[:, :1] + u,
    "one entry, expanded": lambda x, u: x[:, :1].expand_as(u) + u,
    "overwritten": lambda x, u: x.clone().copy_(u),
    "only asked": lambda x, u: torch.where(x > 0, u, -u),
    "twice": lambda x, u: torch.add(u, x, alpha=2),
    "subtracted from": lambda x, u: u - x,
    "scaled": lambda x, u: x * 2 + u,
    "not at all": lambda x, u: u,
}


def written(write: Write) -> fx.Graph:
    class Adding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return write(x, x.tanh())

    return (
        torch.export.export(Adding(), (torch.randn(2, 4, 6),))
        .run_decompositions(decompositions())
        .graph
    )


@pytest.mark.parametrize("name", MOVED)
def test_what_is_moved_and_added_to_is_a_stream(name: str) -> None:
    graph = written(MOVED[name])
    holders = [n for n in graph.nodes if n.op == "placeholder" and n.name == "x"]
    assert residual_source(graph, results(graph)[0]) is holders[0]


@pytest.mark.parametrize("name", NOT_MOVED)
def test_what_is_not_handed_on_entry_by_entry_is_none(name: str) -> None:
    graph = written(NOT_MOVED[name])
    assert residual_stream(graph, results(graph)[0]) is None


class Buffered(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return halves(super().forward(x), torch.zeros(()))


class InPlace(Plain):
    """Writes into the stream that it is given: a view of the model's tokens."""

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.unflatten(0, (2, -1)).flatten(1, 2)
        return x.add_(super().forward(x) - x).reshape(shape)


class ToFrames(Plain):
    """Takes tokens [B, N, W], returns channels first [B, W, F, P]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mT.unflatten(2, (-1, INNER))


class ToFramesByHalves(ToFrames):
    def forward(self, x: Tensor) -> Tensor:
        return halves(super().forward(x), torch.zeros(()))


class ToFramesOneByOne(ToFrames):
    """Writes one channel after another into a buffer, and that into another."""

    def forward(self, x: Tensor) -> Tensor:
        whole = super().forward(x)
        result = torch.empty_like(whole)
        for i in range(whole.shape[1]):
            result[:, i] = whole[:, i]
        return torch.empty_like(result).copy_(result)


class ToHalfAFrame(ToFrames):
    """A buffer that is written in part: no entry of the rest is one of the stream's."""

    def forward(self, x: Tensor) -> Tensor:
        whole = super().forward(x)
        result = torch.zeros_like(whole)
        result[:, ::2] = whole[:, ::2]
        return result


class InFrames(Plain):
    """Folds the frames into the batch for its attention, from tokens."""

    def __init__(self) -> None:
        super().__init__(self.folded)

    @staticmethod
    def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (t.unflatten(1, (-1, INNER)).flatten(0, 1) for t in (q, k, v))
        return fused(*parts).unflatten(0, (q.shape[0], -1)).flatten(1, 2)


class AddsSkip(Plain):
    """An earlier block's result is added to the stream before the block's own work."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return super().forward(x if skip is None else x + skip)


class Model(nn.Module):
    """Tokens [B, N, 4] in and out; what a layer is given and returns follows from its kind."""

    def __init__(self, kind: type[Plain]) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.layers = nn.ModuleList(kind() for _ in range(2))
        self.kind = kind

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        x = first = self.embed(video)
        for layer in self.layers:
            if self.kind is InPlace:
                view = x.unflatten(1, (-1, INNER)).flatten(0, 1)
                layer(view)
            elif issubclass(self.kind, ToFrames):
                x = layer(x).flatten(2).mT
            elif self.kind is AddsSkip:
                x = layer(x, first) if layer is self.layers[1] else layer(x)
            else:
                x = layer(x)
        return self.unembed(x) + text.mean()


@cache
def captured(kind: type[Plain]) -> tuple[Model, Program]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(kind).eval().requires_grad_(False)
    return model, fisopt.capture(model, call(), spec=ModelSpec(("layers.*",), GRID))


@pytest.mark.parametrize("kind", [Buffered, InPlace, ToFrames, ToFramesByHalves, ToFramesOneByOne])
@pytest.mark.parametrize("fill", ["residual", "carry"])
def test_the_update_is_interpolated_however_it_is_returned(kind: type[Plain], fill: Any) -> None:
    (_, want), (_, program) = captured(Plain), captured(kind)
    step = FrameInterleave(blocks=":", fill=fill)
    expected, got = (PassManager([step]).run(p) for p in (want, program))
    assert not any("no residual stream" in note for note in step(program).notes)
    torch.testing.assert_close(got(**call()), expected(**call()), atol=1e-5, rtol=0)


def test_a_buffer_that_holds_a_part_of_the_stream_is_no_stream() -> None:
    _, program = captured(ToHalfAFrame)
    assert any("no residual stream" in n for n in FrameInterleave(blocks=":")(program).notes)


def test_the_sum_of_stream_and_skip_is_what_a_block_updates() -> None:
    model, program = captured(AddsSkip)
    graph = program.blocks[1].body.graph
    stream = residual_stream(graph, results(graph)[0])
    assert stream is not None
    assert len(stream.arguments) == 2
    got = PassManager([FrameInterleave(blocks=":")]).run(program)(**call())
    x = first = model.embed(call()["video"])
    for index, layer in enumerate(model.layers):
        x = x + first if index == 1 else x
        kept = anchor_frames(FRAMES, 2, index % 2)
        x = x + spread(Plain.forward(layer, x[:, rows(kept)]) - x[:, rows(kept)], kept)
    want = model.unembed(x) + call()["text"].mean()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_attention_inside_a_frame_is_found_where_the_block_folds_it() -> None:
    model, program = captured(InFrames)
    for block in program.blocks:
        assert len(self_attentions(block.body.graph)) == 1
    got = PassManager([FrameInterleave(blocks=":", scope="attention")]).run(program)(**call())
    x = model.embed(call()["video"])
    for index, layer in enumerate(model.layers):
        x = with_sparse_attention(layer, x, anchor_frames(FRAMES, 2, index % 2))
    want = model.unembed(x) + call()["text"].mean()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert "2 of 2 blocks reduced" in str(TokenReduction(query=0.4, value=0.3)(program).notes)


def test_one_frame_is_found_through_a_view() -> None:
    """Hidden states [B, 1, P, W]; text, which is as long, is no video."""

    class Framed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1, 2)).reshape(x.shape)

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Framed()])

        def forward(self, video: Tensor) -> Tensor:
            return self.layers[0](video)

    model = Image().eval().requires_grad_(False)
    spec = ModelSpec(("layers.*",), (1, 4, 5))
    program = fisopt.capture(model, {"video": torch.randn(1, 1, 20, WIDTH)}, spec=spec)
    assert "1 of 1 blocks reduced" in str(TokenReduction(query=0.4, value=0.4)(program).notes)
