"""The cost model against FLOPs counted by hand."""

from __future__ import annotations

import pytest
import torch

from fisopt import FrameInterleave, PassManager, Program, predicted_ratio, program_cost
from fisopt.passes.token_reduction import Reduction
from fisopt.rewrite.cost import FLOPS_A_BYTE, graph_cost, traffic
from fisopt.rewrite.ops.match_tokens import RANKING
from tests.conftest import plain_captured
from tests.plain_dit import FORMS
from tests.zoo import Case, zoo

B, N, T, D = 2, 60, 12, 48
HEADS, HEAD, FFN = 2, 24, 96


def attention(rows: int, keys: int) -> float:
    """Scores and values: two products of B * heads * rows * keys * head multiply-adds."""
    return 2 * 2.0 * B * HEADS * rows * keys * HEAD


def linear(rows: int, width: int, out: int) -> float:
    return 2.0 * B * rows * width * out


def test_wan_block(wan: Program) -> None:
    config = zoo()["wan"].model.config
    heads, head, ffn = config.num_attention_heads, config.attention_head_dim, config.ffn_dim
    assert (heads, head, heads * head) == (HEADS, HEAD, D)
    cost = graph_cost(wan.blocks[0].body.graph)
    assert cost.flops["self-attention"] == attention(N, N)
    assert cost.flops["cross-attention"] == attention(N, T)
    projections = 6 * linear(N, D, D) + 2 * linear(T, D, D)
    assert cost.flops["linear"] == projections + 2 * linear(N, D, ffn)
    assert cost.flops["convolution"] == 0
    assert cost.bytes > 0


def test_wan(wan: Program) -> None:
    cost = program_cost(wan)
    assert cost.flops["self-attention"] == len(wan.blocks) * attention(N, N)
    assert cost.flops["convolution"] == 2.0 * B * N * D * 4 * 1 * 2 * 2
    assert cost.attention_share == cost.flops["self-attention"] / cost.total


@pytest.mark.parametrize("kv", ["anchors", "all"])
def test_sparse_wan(wan: Program, kv: str) -> None:
    """Four blocks on 3, 4, 3, 4 of 5 frames of 12 tokens."""
    program = FrameInterleave(stride=2, blocks=":", kv=kv)(wan).program  # type: ignore[arg-type]
    rows = [36, 48, 36, 48]
    keys = rows if kv == "anchors" else [N] * 4
    want = sum(attention(q, k) for q, k in zip(rows, keys, strict=True))
    assert program_cost(program).flops["self-attention"] == want
    assert program_cost(program).flops["cross-attention"] == sum(attention(q, T) for q in rows)
    ratio = program_cost(wan).total / program_cost(program).total
    assert predicted_ratio(wan, program) == ratio > 1


def test_attention_scope_leaves_the_rest(wan: Program) -> None:
    program = FrameInterleave(stride=2, blocks=":", scope="attention", kv="all")(wan).program
    dense, sparse = program_cost(wan).flops, program_cost(program).flops
    assert sparse["self-attention"] == sum(attention(q, N) for q in (36, 48, 36, 48))
    assert sparse["cross-attention"] == dense["cross-attention"]
    saved = sum(linear(N - q, D, D) for q in (36, 48, 36, 48))
    assert dense["linear"] - sparse["linear"] in (0.0, saved)


def test_written_out_attention_counts_the_same() -> None:
    fused, plain = (
        program_cost(plain_captured(FORMS[name])[1]) for name in ("fused", "written_out")
    )
    assert plain.flops["self-attention"] == fused.flops["self-attention"] > 0
    assert plain.flops["linear"] + plain.flops["cross-attention"] == (
        fused.flops["linear"] + fused.flops["cross-attention"]
    )


@pytest.mark.parametrize("case", zoo().values(), ids=zoo())
def test_every_family_has_self_attention(case: Case, program: Program) -> None:
    cost = program_cost(program)
    assert 0 < cost.attention_share < 1
    sparse = FrameInterleave(stride=2)(program).program
    assert predicted_ratio(program, sparse) > 1


def test_moving_tokens_counts_as_the_time_that_it_takes() -> None:
    """Rows of 16 features in four bytes; half of the queries and all keys of one block."""
    _, program = plain_captured(FORMS["fused"])
    reduced = PassManager(
        [Reduction((0.5, 0.0, 0.0), 0.0, (2, 2, 2), "replace", 0, search="all")]
    ).run(program)
    dense, cost = program_cost(program), program_cost(reduced)
    ops = torch.ops.fisopt
    match, reduce, restore = (
        next(n for n in reduced.blocks[0].body.graph.nodes if n.target is op.default)
        for op in (ops.match_tokens, ops.reduce_tokens, ops.restore_tokens)
    )
    x = match.args[0].meta["val"]
    heads, tokens, row = x.shape[:-2].numel(), x.shape[-2], 4 * x.shape[-1]
    assert traffic(match) == heads * tokens * (row + RANKING)
    assert traffic(reduce) == 2 * heads * (tokens // 2) * row
    assert traffic(restore) == 2 * heads * tokens * row
    assert cost.traffic == traffic(match) + traffic(reduce) + traffic(restore)
    assert dense.traffic == 0
    assert cost.work == cost.total + FLOPS_A_BYTE * cost.traffic
    assert predicted_ratio(program, reduced) == dense.total / cost.work
