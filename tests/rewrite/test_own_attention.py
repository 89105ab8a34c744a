"""An attention operator of one's own: one attention to every pass, as torch's would be."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import (
    FisoptError,
    FrameInterleave,
    ModelSpec,
    OptionError,
    OptionTypeError,
    Pass,
    Program,
    TileAttention,
    TokenReduction,
    program_cost,
)

WIDTH, HEADS, FRAMES = 16, 4, 6
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))
CALLED: list[tuple[int, ...]] = []
"""The shapes of the queries that an operator was given."""


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, h, N, D]"""
    CALLED.append(tuple(q.shape))
    scores = q @ k.mT * scale
    return (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-1) @ v


@torch.library.custom_op("fisopt_tests::tokens_first", mutates_args=())
def tokens_first(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    rows = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril() if causal else None
    return written(*rows, mask, softmax_scale or q.shape[-1] ** -0.5).transpose(1, 2).contiguous()


@torch.library.custom_op("fisopt_tests::heads_first", mutates_args=())
def heads_first(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
    return written(q, k, v, seen, 0.3)


@torch.library.custom_op("fisopt_tests::undeclared", mutates_args=())
def undeclared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return written(q, k, v, None, 0.3)


@torch.library.custom_op("fisopt_tests::two_results", mutates_args=())
def two_results(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.clone(), k.clone()


for _op in (tokens_first, heads_first, undeclared):
    _op.register_fake(lambda q, *rest: torch.empty_like(q))
fisopt.operators.attention(tokens_first, layout="bnhd", scale="softmax_scale")
fisopt.operators.attention(
    torch.ops.fisopt_tests.heads_first, scale=0.3, mask="seen", plain={"causal": False}
)


class Layer(nn.Module):
    """Self-attention by an operator, or by torch."""

    def __init__(self, by: str, masked: bool, causal: bool) -> None:
        super().__init__()
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.by, self.masked, self.causal = by, masked, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in self.qkv(x).chunk(3, -1))
        mask = (x[..., 0] > -1)[:, None, None] if self.masked else None
        if self.by == "one head":
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.added(x, heads_first(q, k, v, None, False)[:, :, None])
        if self.by == "tokens_first":
            return self.added(x, tokens_first(q, k, v, softmax_scale=0.3, causal=self.causal))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.by == "heads_first":
            out = heads_first(q, k, v, mask, False)
        elif self.by == "undeclared":
            out = undeclared(q, k, v)
        else:
            out = functional.scaled_dot_product_attention(
                q, k, v, mask, scale=0.3, is_causal=self.causal
            )
        return self.added(x, out.transpose(1, 2))

    def added(self, x: Tensor, out: Tensor) -> Tensor:
        return x + self.mlp(out.flatten(2))


class Model(nn.Module):
    """Tokens [B, 2 F, 16] in and out."""

    def __init__(self, by: str, masked: bool, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(by, masked, causal) for _ in range(3))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def model(by: str, masked: bool = False, causal: bool = False) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(by, masked, causal).eval().requires_grad_(False)


def video(frames: int = FRAMES) -> dict[str, Any]:
    return {"video": torch.randn(1, 2 * frames, WIDTH, generator=torch.Generator().manual_seed(0))}


def captured(*options: Any) -> Program:
    return fisopt.capture(model(*options), video(), spec=SPEC)


def sparse(program: Program, *passes: Pass) -> Any:
    """What a Program computes under passes."""
    CALLED.clear()
    return fisopt.PassManager(passes).run(program)(**video())


PASSES: dict[str, list[Pass]] = {
    "dense": [],
    "frames": [FrameInterleave(2)],
    "all keys": [FrameInterleave(2, kv="all", blocks=":")],
    "tiles": [TileAttention(1)],
    "tokens": [TokenReduction(0.4, 0.4, destination_stride=(2, 1, 1))],
    "frames and tiles": [FrameInterleave(2), TileAttention(1)],
}
TILED = ("tiles", "frames and tiles")


@pytest.mark.parametrize(("by", "masked"), [("tokens_first", False), ("heads_first", True)])
def test_every_pass_sees_it_as_torch_s(by: str, masked: bool) -> None:
    """The oracle is the same model with torch's attention."""
    own, theirs = captured(by, masked), captured("torch", masked)
    assert f"fisopt_tests::{by}, True)" in fisopt.format_graph(own)
    dense = program_cost(theirs).flops["self-attention"]
    assert program_cost(own).flops["self-attention"] == dense > 0
    for name, passes in PASSES.items():
        want = sparse(theirs, *passes)
        torch.testing.assert_close(sparse(own, *passes), want, rtol=1e-5, atol=1e-5, msg=name)
        assert bool(CALLED) == (name not in TILED), name
        shortest = min((shape[2] for shape in CALLED), default=0)
        assert (shortest < 2 * FRAMES) == (name != "dense"), name
        costs = [
            program_cost(fisopt.PassManager(passes).run(p)).flops["self-attention"]
            for p in (own, theirs)
        ]
        assert costs[0] == costs[1], name
        assert (costs[0] < dense) == (name != "dense"), name


def test_it_runs_through_optimize_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    own, want = model("tokens_first"), model("torch")(**video())
    fast = fisopt.optimize(own, spec=SPEC, example_inputs=video(), attention="flash")
    CALLED.clear()
    torch.testing.assert_close(fast(**video()), want, rtol=1e-5, atol=1e-5)
    assert CALLED == [(1, HEADS, 2 * FRAMES, WIDTH // HEADS)] * 3, "what the model calls stays"
    assert "not in the prediction" not in str(fast.report)
    torch.testing.assert_close(copy.deepcopy(fast)(**video()), want, rtol=1e-5, atol=1e-5)


def test_a_model_that_calls_it_later_is_captured_anew() -> None:
    own = model("torch")
    want, fast = own(**video()), fisopt.optimize(own, spec=SPEC, backend="eager")
    torch.testing.assert_close(fast(**video()), want, rtol=1e-5, atol=1e-5)
    for layer in fast.layers:
        layer.by = "tokens_first"
    CALLED.clear()
    torch.testing.assert_close(fast(**video()), want, rtol=1e-5, atol=1e-5)
    assert len(CALLED) == 3
    assert "layers.0.by was 'torch', is 'tokens_first'" in str(fast.report)


def test_under_other_operands_it_is_whole() -> None:
    own = captured("tokens_first", False, True)
    want = model("torch", False, True)(**video())
    torch.testing.assert_close(own(**video()), want, rtol=1e-5, atol=1e-5)
    assert "fisopt_tests::tokens_first(causal=True), False)" in fisopt.format_graph(own)
    assert program_cost(own).flops["self-attention"] > 0
    tiled = TileAttention(1)(own, strict=False)
    reduced = TokenReduction(0.4, 0.4, destination_stride=(2, 1, 1))(own, strict=False)
    for result in (tiled, reduced):
        assert "what fisopt_tests::tokens_first(causal=True) means" in str(result.skipped[0])
        torch.testing.assert_close(result.program(**video()), want, rtol=1e-5, atol=1e-5)


def test_operands_without_heads_stay_the_operator_s() -> None:
    own = model("one head")
    fast = fisopt.optimize(own, [], video(), spec=SPEC, backend="eager")
    torch.testing.assert_close(fast(**video()), own(**video()), rtol=1e-5, atol=1e-5)
    assert "not in the prediction: fisopt_tests::heads_first (3 calls)" in str(fast.report)


def test_what_is_not_declared_is_not_in_the_prediction() -> None:
    own = model("undeclared")
    passes = [FrameInterleave(2)]
    fast = fisopt.optimize(own, passes, video(), spec=SPEC, backend="eager")
    torch.testing.assert_close(
        fisopt.optimize(fast, [], backend="eager")(**video()), own(**video()), rtol=1e-5, atol=1e-5
    )
    said = str(fast.report)
    assert "x of what is counted" in said
    assert "not in the prediction: fisopt_tests::undeclared (3 calls); declare their cost" in said
    cost = program_cost(fast.program(video()))
    assert dict(cost.unknown) == {"fisopt_tests::undeclared": 3}
    assert cost.flops["self-attention"] == 0


def refusal(kind: type[FisoptError], op: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        fisopt.operators.attention(op, **options)
    return str(caught.value)


def test_what_is_refused() -> None:
    assert "got 3; wanted an operator of torch" in refusal(OptionTypeError, 3)
    assert "tokens_first is declared already" in refusal(OptionError, tokens_first)
    assert "wanted one tensor: wrap it" in refusal(OptionError, two_results)
    assert "three tensors" in refusal(OptionError, torch.ops.aten.linear.default)
    assert "name one" in refusal(OptionError, torch.ops.aten.add)
    assert "layout must be one of" in refusal(OptionError, undeclared, layout="nhd")
    said = refusal(OptionError, undeclared, scale="scale", mask="mask", plain={"window": 0})
    assert "no operand ['scale', 'mask', 'window']; besides queries, keys and values" in said
