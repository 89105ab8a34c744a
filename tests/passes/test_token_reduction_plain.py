"""TokenReduction on a plain model without diffusers: forms, composition, sharing, seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fisopt import (
    FrameInterleave,
    PassManager,
    PreconditionError,
    Program,
    TileAttention,
    TokenReduction,
    format_graph,
)
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.passes.token_reduction import Reduction
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.pass_base import Step
from tests import plain_dit
from tests.conftest import plain_captured
from tests.passes.dense_reduction import Attend, Grid, Options, reduced
from tests.passes.test_frame_interleave_plain import looped
from tests.plain_dit import FORMS, Form, PlainDiT

TOLERANCE = 1e-5
GRID = (7, 2, 3)
FORM = FORMS["text_behind"]


def program_of(form: Form, grid: Grid = GRID) -> tuple[PlainDiT, Program, dict[str, Any]]:
    model, program = plain_captured(form)
    inputs = plain_dit.inputs(form, *grid, batch=2)
    return model, program.at(inputs), inputs


def written_out(
    model: PlainDiT, inputs: dict[str, Any], options: Options, grid: Grid = GRID
) -> Tensor:
    attend = Attend(options, lambda _: grid, front=model.form.text == "front")

    def mix(self: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    patched = mock.patch.object(plain_dit.Attention, "mix", mix)
    with patched, reduced(model, ("layers.*",), attend):
        output: Tensor = model(**inputs)["video"]
    assert attend.seen == len(model.layers)
    return output


def short(program: Program, options: Options) -> Program:
    return PassManager([Reduction(**vars(options))]).run(program)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("mode", ["replace", "mean"])
def test_equals_the_loops(form: Form, mode: str) -> None:
    model, program, inputs = program_of(form)
    for query, value in ((0.5, 0.3), (0.9, 0.0), (0.0, 0.9), (0.1, 0.1)):
        options = Options(query, value, (3, 1, 2), mode)
        got = short(program, options)(**inputs)["video"]
        difference = float((got - written_out(model, inputs, options)).abs().max())
        assert difference <= TOLERANCE, (options, difference)


@pytest.mark.parametrize("grid", [(5, 2, 3), (10, 2, 3)], ids=str)
def test_equals_the_loops_at_every_published_share(grid: Grid) -> None:
    """30 and 60 tokens: without .8 or .9 of them, one less is left in doubles than by hand."""
    model, program, inputs = program_of(FORM, grid)
    for tenths in range(1, 10):
        options = Options(tenths / 10, (10 - tenths) / 10, (5, 2, 3))
        got = short(program, options)(**inputs)["video"]
        difference = float((got - written_out(model, inputs, options, grid)).abs().max())
        assert difference <= 1e-6, (options, difference)


def test_ratios_of_each_block() -> None:
    model, program, inputs = program_of(FORM)
    options = Options((0.5, 0.0, 0.3), (0.0, 0.0, 0.6))
    result = short(program, options)
    got = result(**inputs)["video"]
    assert float((got - written_out(model, inputs, options)).abs().max()) <= TOLERANCE
    targets = [str(block.call.target) for block in result.blocks]
    assert targets == ["block_a_r", "block_a", "block_a_r_1"]


def test_equal_blocks_share_a_graph() -> None:
    _, program, _ = program_of(FORM)
    result = short(program, Options(0.5, 0.3))
    assert {str(block.call.target) for block in result.blocks} == {"block_a_r"}


def test_nothing_dropped_is_nothing_changed() -> None:
    """A share of 0, or a destination at every token, leaves the graph as it was."""
    _, program, inputs = program_of(FORM)
    for step in (TokenReduction(), TokenReduction(0.5, 0.5, (1, 1, 1))):
        result = step(program)
        assert not result.modified
        assert result.notes
        assert format_graph(result.program) == format_graph(program)
        assert torch.equal(result.program(**inputs)["video"], program(**inputs)["video"])


def test_two_frames_are_dense() -> None:
    _, program, inputs = program_of(FORM, (2, 2, 3))
    result = TokenReduction(0.5, 0.5)(program)
    assert result.notes == ("dense: 2 latent frames are too few to tell tokens from text",)
    assert torch.equal(result.program(**inputs)["video"], program(**inputs)["video"])


def test_the_cap() -> None:
    """No share drops a destination: .9 of 42 tokens leaves 4, but there are 6 destinations."""
    _, program, _ = program_of(FORM)
    texts = {format_graph(short(program, Options(q, 0.0, (2, 1, 3)))) for q in (0.9, 0.99)}
    assert len(texts) == 1
    assert "fisopt::reduce_tokens" in texts.pop()


def test_tiles_before_it_are_refused_by_name() -> None:
    _, program, _ = program_of(FORM)
    refused = r"layers\.0, layers\.1, layers\.2: TileAttention has replaced the atten"
    with pytest.raises(PreconditionError, match=refused):
        PassManager([TileAttention(1), TokenReduction(0.5)]).run(program)


def test_seeds() -> None:
    _, program, inputs = program_of(FORM)
    first, again, other = (
        TokenReduction(0.6, 0.3, seed=seed)(program).program(**inputs)["video"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert "seed 1" in TokenReduction(0.6, seed=1)(program).notes[-1]


def test_when_destinations_are_redrawn() -> None:
    """By default in the windows of a pass whose steps differ anyway; only what matches draws."""
    once, cached = TokenReduction(0.5), TokenReduction(0.5, cache_steps=3)
    every = TokenReduction(0.5, redraw=True)
    assert [p.stepwise for p in (once, cached, every)] == [False, True, True]

    def draws(step: TokenReduction) -> list[int]:
        made = [step.at(Step(index, 8)) for index in range(8)]
        return [reduction.draw for reduction in made if reduction is not None]

    assert draws(once) == [0] * 8
    assert draws(every) == list(range(8))
    assert draws(cached) == [0, 0, 0, 1, 0, 0, 2, 0]
    assert draws(replace(cached, redraw=False)) == [0] * 8
    assert len({cached.at(Step(index, 8)) for index in range(8)}) == 4, "three match, one reuses"
    late = [cached.at(Step(index, 5, skipped=3)) for index in range(5)]
    assert late == [cached.at(Step(index, 8)) for index in range(3, 8)], "a run from step 3 on"


@pytest.mark.parametrize("name", ["fused", "text_in_front", "text_behind"])
@pytest.mark.parametrize("scope", ["block", "attention"])
@pytest.mark.parametrize("kv", ["anchors", "all"])
def test_with_frame_interleave_in_either_order(name: str, scope: Any, kv: Any) -> None:
    """Inside a sparse block the grid is that of the anchor frames."""
    _, program, inputs = program_of(FORMS[name])
    frames = FrameInterleave(stride=2, blocks=":", scope=scope, kv=kv)
    tokens = TokenReduction(0.5, 0.3, destination_stride=(2, 1, 1))
    one, other = (PassManager(p).run(program) for p in ([frames, tokens], [tokens, frames]))
    assert format_graph(one) == format_graph(other)
    assert torch.equal(one(**inputs)["video"], other(**inputs)["video"])
    text = 0 if name == "fused" else 5
    for index, block in enumerate(one.blocks):
        anchors = len(anchor_frames(7, 2, index % 2))
        lengths = {}
        for node in block.body.graph.nodes:
            if node.target is torch.ops.fisopt.match_tokens.default:
                x, chosen, keep, before, after, profile = node.args
                assert profile is False
                assert before + after == text
                found = (x.meta["val"].shape[-2] - text, chosen.meta["val"].shape[0] + keep)
                lengths[chosen.name.split("_")[-1]] = found
        assert lengths["query"] == (anchors * 6, int(anchors * 6 * 0.5))
        values = anchors * 6 if kv == "anchors" else 42
        assert lengths["value"] == (values, int(values * 0.7))


def test_reduction_inside_a_sparse_block() -> None:
    """Reduced attention of anchor frames: the layer's own forward on those frames, filled."""
    model, program, inputs = program_of(FORMS["fused"])
    options = Options(0.5, 0.3, (2, 1, 1))
    passes = [Reduction(**vars(options)), FrameInterleave(stride=2, blocks=":")]  # type: ignore[arg-type]
    got = PassManager(passes).run(program)(**inputs)["video"]
    kept = {i: len(anchor_frames(7, 2, i % 2)) for i in range(3)}
    attend = Attend(options, lambda block: (kept[block], 2, 3), front=False)
    with reduced(model, ("layers.*",), attend):
        want = looped(model, inputs, 7, fill="residual", kv="anchors", scope="block")
    assert attend.seen == 3
    assert float((got - want).abs().max()) <= TOLERANCE


def test_cost() -> None:
    """Attention is counted on what is left, and matching is counted."""
    _, program, _ = program_of(FORMS["fused"])
    dense = program_cost(program).flops
    kept = program_cost(short(program, Options(0.5, 0.3))).flops
    queries, keys = 21 / 42, int(42 * 0.7) / 42
    assert kept["self-attention"] / dense["self-attention"] == pytest.approx(queries * keys)
    assert dense["matching"] == 0
    pairs = 2 * (42 - 3) * 3  # of queries and of values
    assert kept["matching"] == 3 * 2 * 2 * pairs * 2 * 16
    others = ("linear", "cross-attention")
    assert [kept[o] for o in others] == [dense[o] for o in others]
