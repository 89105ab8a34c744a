"""Blocks whose results, streams and attentions are found only by what their values hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import (
    FrameInterleave,
    Match,
    ModelSpec,
    Pass,
    PassManager,
    PreconditionError,
    Program,
    Rule,
    RulePass,
    TileAttention,
    TokenReduction,
)
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.rewrite.analysis.structure import attentions, residual_source, results, self_attentions
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.cost import graph_cost

aten = torch.ops.aten
GRID, WIDTH, HEADS = (5, 2, 3), 16, 2
FRAMES, INNER = 5, 6
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(functional.scaled_dot_product_attention(heads(q), heads(k), heads(v)))


def flat_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """bmm on [B * h, N, D]."""
    q, k, v = (heads(x).flatten(0, 1) for x in (q, k, v))
    weights = (torch.bmm(q, k.mT) / q.shape[-1] ** 0.5).softmax(-1)
    return joined(torch.bmm(weights, v).unflatten(0, (-1, HEADS)))


def with_alpha(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """baddbmm with nothing to add, as older attention processors write it."""
    q, k, v = (heads(x).flatten(0, 1) for x in (q, k, v))
    nothing = torch.empty(q.shape[0], q.shape[1], k.shape[1])
    scores = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return joined(torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS)))


def heads_viewed_between(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are [B, h, N, M] while the softmax is taken, and [B * h, N, M] else."""
    q, k, v = (heads(x).flatten(0, 1) for x in (q, k, v))
    scores = torch.bmm(q, k.mT).view(-1, HEADS, q.shape[1], k.shape[1]) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1).view(-1, q.shape[1], k.shape[1])
    return joined(torch.bmm(weights, v).unflatten(0, (-1, HEADS)))


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (heads(x) for x in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return joined(torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v))


def einsum_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, -1)) for x in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)


MIXES: dict[str, Mix] = {
    f.__name__: f
    for f in (fused, flat_heads, with_alpha, heads_viewed_between, einsum, einsum_heads_last)
}


class Attention(nn.Module):
    def __init__(self, mix: Mix = fused) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mix = mix

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.out(self.mix(self.q(x), self.k(context), self.v(context)))


class Plain(nn.Module):
    """Self-attention and a feed-forward layer."""

    def __init__(self, mix: Mix = fused) -> None:
        super().__init__()
        self.attend, self.mlp, self.norm = (
            Attention(mix),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attend(y, y)
        return x + self.mlp(self.norm(x)).tanh()


class Hinting(Plain):
    """Also returns a projection of its stream, as a control branch hands its hints on."""

    def __init__(self) -> None:
        super().__init__()
        self.hint = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(x)
        return x, self.hint(x)


class TextSeesVideo(Plain):
    """Text attends to the video, then the video attends to that text."""

    def __init__(self) -> None:
        super().__init__()
        self.to_video, self.to_text = Attention(), Attention()

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(x)
        text = text + self.to_video(text, x)
        return x + self.to_text(x, text), text


class LongSkip(Plain):
    """The skip of an earlier block is joined to the channels, so no stream passes through."""

    def __init__(self, outer: bool) -> None:
        super().__init__()
        self.join = nn.Linear(2 * WIDTH, WIDTH) if outer else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.join is not None and skip is not None:
            x = self.join(torch.cat([x, skip], -1))
        return super().forward(x)


class Model(nn.Module):
    """Tokens [B, N, 4] and text [B, T, C] in; how the layers are called follows from their kind."""

    def __init__(self, kind: str, mix: Mix = fused) -> None:
        super().__init__()
        kinds: dict[str, list[nn.Module]] = {
            "plain": [Plain(mix), Plain(mix)],
            "hint": [Hinting(), Hinting()],
            "text": [TextSeesVideo(), TextSeesVideo()],
            "skip": [LongSkip(False), LongSkip(False), LongSkip(True), LongSkip(True)],
        }
        self.layers = nn.ModuleList(kinds[kind])
        self.embed, self.unembed = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.kind = kind

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        x, seen = self.embed(video), []
        hints = torch.zeros_like(x)
        for layer in self.layers:
            if self.kind == "hint":
                x, hint = layer(x)
                hints = hints + hint
            elif self.kind == "text":
                x, text = layer(x, text)
            elif self.kind == "skip":
                x = layer(x, seen.pop()) if layer.join is not None else layer(x)
                seen += [x] if layer.join is None else []
            else:
                x = layer(x)
        return self.unembed(x + hints)


@cache
def captured(kind: str, mix: Mix = fused) -> tuple[Model, Program]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(kind, mix).eval().requires_grad_(False)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    return model, fisopt.capture(model, call(), spec=spec)


def call() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, FRAMES * INNER, 4, generator=generator)
    return {"video": video, "text": torch.randn(2, 4, WIDTH, generator=generator)}


def rows(frames: Any) -> Tensor:
    return torch.tensor([f * INNER + i for f in frames for i in range(INNER)])


def spread(y: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Values of skipped frames, linear between the anchors around them."""
    known, frames = y.unflatten(1, (len(kept), INNER)), []
    for f in range(FRAMES):
        left, right = max(k for k in kept if k <= f), min(k for k in kept if k >= f)
        w = (f - left) / (right - left) if right > left else 0.0
        a, b = known[:, kept.index(left)], known[:, kept.index(right)]
        frames.append((1 - w) * a + w * b)
    return torch.cat(frames, 1)


def test_a_result_without_a_stream_is_interpolated_itself() -> None:
    """The stream is filled by its update; a projection of it has no update."""
    model, program = captured("hint")
    result = FrameInterleave(blocks=":")(program)
    inputs = call()
    x = model.embed(inputs["video"])
    hints = torch.zeros_like(x)
    for index, layer in enumerate(model.layers):
        kept = anchor_frames(FRAMES, 2, index % 2)
        short, hint = layer(x[:, rows(kept)])
        hints = hints + spread(hint, kept)
        x = x + spread(short - x[:, rows(kept)], kept)
    got = result.program(**inputs)
    torch.testing.assert_close(got, model.unembed(x + hints), atol=1e-5, rtol=0)
    said = [n for n in result.notes if "no residual stream" in n]
    assert [n.split(":")[0] for n in said] == ["layers.0", "layers.1"]
    assert all("is interpolated itself" in n for n in said)


@pytest.mark.parametrize("kind", ["hint", "skip"])
def test_only_a_residual_path_is_a_source(kind: str) -> None:
    _, program = captured(kind)
    graph = program.blocks[-1].body.graph
    sources = [residual_source(graph, n) for n in results(graph) if carries_frames(n)]
    assert [s is None for s in sources] == ([False, True] if kind == "hint" else [True])


def test_long_skips_keep_their_self_attention() -> None:
    _, program = captured("skip")
    for block in program.blocks:
        assert len(self_attentions(block.body.graph)) == 1
    for step in (
        TokenReduction(query=0.4, value=0.4),
        TileAttention(1),
        FrameInterleave(blocks=":", scope="attention"),
        FrameInterleave(blocks=":"),
    ):
        sparse = PassManager([step]).run(program)
        assert not torch.allclose(sparse(**call()), program(**call()), atol=1e-3)


def with_sparse_attention(layer: Any, x: Tensor, kept: tuple[int, ...]) -> Tensor:
    """What a block makes of its stream if its attention runs on some frames alone."""
    inner, y = layer.attend, layer.norm(x)
    short = inner.mix(*(f(y)[:, rows(kept)] for f in (inner.q, inner.k, inner.v)))
    x = x + inner.out(spread(short, kept))
    return x + layer.mlp(layer.norm(x)).tanh()


def test_text_that_has_seen_the_video_is_no_video() -> None:
    model, program = captured("text")
    for block in program.blocks:
        graph = block.body.graph
        assert len(attentions(graph)) == 3
        assert len(self_attentions(graph)) == 1
        flops = graph_cost(graph).flops
        tokens = FRAMES * INNER
        assert flops["self-attention"] == 4 * 2 * tokens * tokens * WIDTH
        assert flops["cross-attention"] == 2 * 4 * 2 * tokens * 4 * WIDTH
    assert TokenReduction(query=0.3, value=0.3)(program).modified
    sparse = FrameInterleave(blocks=":", scope="attention")(program).program
    x, text = model.embed(call()["video"]), call()["text"]
    for index, layer in enumerate(model.layers):
        x = with_sparse_attention(layer, x, anchor_frames(FRAMES, 2, index % 2))
        text = text + layer.to_video(text, x)
        x = x + layer.to_text(x, text)
    torch.testing.assert_close(sparse(**call()), model.unembed(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(MIXES)[1:])
def test_every_way_of_writing_attention_is_the_same(name: str) -> None:
    """Whatever the layout of the heads, a pass makes of it what it makes of the fused operator."""
    (_, want), (_, program) = captured("plain"), captured("plain", MIXES[name])
    assert len(self_attentions(program.blocks[0].body.graph)) == 1
    for step in (
        TokenReduction(query=0.4, value=0.3),
        TileAttention(1),
        FrameInterleave(blocks=":"),
        FrameInterleave(blocks=":", scope="attention"),
    ):
        expected, got = (PassManager([step]).run(p)(**call()) for p in (want, program))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, msg=step.name)


class Image(nn.Module):
    """Latents [B, 4, 1, H, W] of one frame; text is attended to, or joined to the sequence."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Plain() if joint else TextSeesVideo()])
        self.embed, self.unembed = nn.Linear(4 + WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.joint = joint

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        x = latents.flatten(2).mT
        pooled = text.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        x = self.embed(torch.cat([x, pooled], -1))
        for layer in self.layers:
            if self.joint:
                x = layer(torch.cat([text, x], 1))[:, text.shape[1] :]
            else:
                x, _ = layer(x, text)
        return self.unembed(x).mT.unflatten(2, latents.shape[2:])


@cache
def image(joint: bool) -> tuple[Program, dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Image(joint).eval().requires_grad_(False)
    inputs = {"latents": torch.randn(1, 4, 1, 4, 5), "text": torch.randn(1, 20, WIDTH)}
    return fisopt.capture(
        model, inputs, spec=ModelSpec(blocks=("layers.*",), grid=(1, 4, 5))
    ), inputs


def test_one_frame_is_reduced_by_rows_and_columns() -> None:
    """The text is as long as the image has tokens, and is not taken for it."""
    program, inputs = image(joint=False)
    result = TokenReduction(query=0.4, value=0.4)(program)
    assert result.modified
    assert "1 of 1 blocks reduced" in result.notes[0]
    assert "(queries x keys): 12x12" in result.notes[0]
    assert not torch.allclose(result.program(**inputs), program(**inputs), atol=1e-3)
    assert "boundaries" in FrameInterleave(blocks=":")(program).notes[0]
    assert "every tile is kept" in TileAttention(1)(program).notes[0]


def test_one_frame_with_axes_is_reduced() -> None:
    model, _ = captured("plain")
    inputs = {"video": torch.randn(2, 20, 4), "text": torch.randn(2, 4, WIDTH)}
    spec = ModelSpec(blocks=("layers.*",), grid=(1, 4, 5))
    result = TokenReduction(query=0.4, value=0.4)(fisopt.capture(model, inputs, spec=spec))
    assert "2 of 2 blocks reduced" in str(result.notes)


def test_one_frame_joined_to_text_is_refused_by_name() -> None:
    program, inputs = image(joint=True)
    message = r"layers\.0: its sequence of 40 is neither .* which of them are the 1x4x5 tokens"
    with pytest.raises(PreconditionError, match=message):
        TokenReduction(query=0.4)(program)
    result = TokenReduction(query=0.4)(program, strict=False)
    assert result.skipped[0].startswith("layers.0: its sequence of 40")
    assert torch.equal(result.program(**inputs), program(**inputs))
    scale = Rule("scale", lambda x: aten.tanh.default(x), lambda x: aten.neg.default(x), _always)
    ruled = PassManager([RulePass((scale,))]).run(program)
    assert not torch.equal(ruled(**inputs), program(**inputs))


def _always(match: Match) -> bool:
    del match
    return True


def test_one_block_is_told_what_to_pass() -> None:
    program, _ = image(joint=False)
    with pytest.raises(PreconditionError, match=r"one video block, .* pass blocks=':'"):
        FrameInterleave()(program)


class Dropping(Plain):
    """Drops values also outside of training."""

    def __init__(self, attention: bool) -> None:
        super().__init__(self.dropped if attention else fused)
        self.late = not attention

    @staticmethod
    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = map(heads, (q, k, v))
        return joined(functional.scaled_dot_product_attention(*parts, dropout_p=0.25))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return functional.dropout(x, 0.25) if self.late else x


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(
    "step", [FrameInterleave(blocks=":"), TokenReduction(query=0.4), RulePass(())], ids=str
)
def test_dropout_is_refused_by_every_pass(attention: bool, step: Pass) -> None:
    program = dropping(attention)
    message = r"at layers\.0: .* dropout.* \(0\.25\)"
    with pytest.raises(PreconditionError, match=message):
        step(program)


@cache
def dropping(attention: bool) -> Program:
    model = Model("plain").eval().requires_grad_(False)
    model.layers[0] = Dropping(attention).eval().requires_grad_(False)
    return fisopt.capture(model, call(), spec=ModelSpec(blocks=("layers.*",), grid=GRID))


def test_dropout_is_kept_where_no_pass_runs() -> None:
    program = dropping(False)
    assert not torch.equal(program(**call()), program(**call()))
