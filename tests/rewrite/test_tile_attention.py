"""The contract of tile-sparse attention: operator and reference against attention written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisopt.passes.tiling.masks import RadialDecay, SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attention import tile_attention as contract
from tests.tiles import MASKS, TOLERANCES, Problem, problem

TILE = torch.ops.fisopt.tile_attention.default


@pytest.mark.parametrize("frames", range(1, 34))
def test_every_k_of_every_frame_count(frames: int) -> None:
    axis = FrameAxis(frames, inner=5, before=frames % 3, after=frames % 2)
    for k in range(1, frames + 1):
        problem(TileMask(k).table(frames), axis).check()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes, text = st.integers(1, 6), st.sampled_from([0, 0, 1, 7])
    queries = FrameAxis(draw(sizes), 1, draw(sizes), draw(text), draw(text))
    keys = FrameAxis(draw(sizes), 1, draw(sizes), draw(text), draw(text))
    heads = draw(st.sampled_from([1, 2, 4]))
    per_head = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    shape = (heads,) * per_head + (queries.frames, keys.frames)
    table = torch.rand(shape, generator=generator) < 0.4
    table[..., draw(st.integers(0, keys.frames - 1))] = True
    return problem(
        table,
        queries,
        keys,
        heads=heads,
        shared=draw(st.sampled_from([1, heads])),
        mask=draw(st.sampled_from(MASKS)),
        scale=draw(st.sampled_from([None, 0.3])),
    )


@given(problems())
def test_equals_dense_under_the_explicit_mask(drawn: Problem) -> None:
    drawn.check()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tile", [TileMask(3), SlidingWindow(1), RadialDecay(1)], ids=repr)
def test_ragged_blocks_and_text(tile: Any, mask: str) -> None:
    """Frames of 150 tokens are not a multiple of any block size."""
    axis = FrameAxis(7, inner=150, after=40)
    problem(tile.table(7), axis, mask=mask).check()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_types(dtype: torch.dtype) -> None:
    axis = FrameAxis(5, inner=6, before=2)
    problem(TileMask(2).table(5), axis, dtype=dtype).check()


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_ranks(rank: int) -> None:
    problem(TileMask(2).table(5), FrameAxis(5, inner=6), rank=rank).check()


def test_skipped_keys_are_never_read() -> None:
    """Poison in the keys and values of skipped tiles does not show."""
    made = problem(SlidingWindow(1).table(6), FrameAxis(6, inner=4))
    want = TILE(*made.args)
    poisoned = list(made.args)
    for i in (1, 2):
        poisoned[i] = made.args[i].clone()
        poisoned[i][..., 12:, :] = float("nan")
    got = TILE(*poisoned)
    assert torch.equal(got[..., :8, :], want[..., :8, :])
    assert bool(got[..., 8:, :].isnan().any(-1).all())


def test_all_kept_is_the_fused_attention_to_the_bit() -> None:
    made = problem(TileMask(5).table(5), FrameAxis(5, inner=6), mask="padding")
    want = torch.nn.functional.scaled_dot_product_attention(*made.args[:3], attn_mask=made.mask)
    assert torch.equal(TILE(*made.args), want)
    assert torch.equal(contract.reference(*made.args), want)


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_registration(mask: str) -> None:
    made = problem(TileMask(2).table(5), FrameAxis(5, inner=3, before=1), mask=mask)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(TILE, made.args, test_utils=tests)


def test_memory_is_laid_out_as_models_read_it() -> None:
    made = problem(TileMask(2).table(5), FrameAxis(5, inner=3))
    assert TILE(*made.args).transpose(1, 2).is_contiguous()
