"""The plan of a tile-sparse attention: what it keeps, what it costs to build, published figures."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fisopt.passes.tiling.masks import FrameMask, RadialDecay, SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.tile_plan import TilePlan, block_density, tile_plan
from tests.tiles import explicit

MASKS: list[FrameMask] = [TileMask(4), SlidingWindow(3), RadialDecay(2)]


def planned(plan: TilePlan, queries: int, keys: int) -> Tensor:
    """The N x N mask that a plan describes."""
    result = torch.zeros(plan.keys.shape[0], queries, keys, dtype=torch.bool)
    rows = plan.rows.tolist()
    for h, groups in enumerate(plan.keys.tolist()):
        for g, ranges in enumerate(groups):
            for start, end in ranges:
                assert not result[h, rows[g] : rows[g + 1], start:end].any()
                result[h, rows[g] : rows[g + 1], start:end] = True
    return result


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, FrameAxis, FrameAxis]:
    sizes = st.integers(1, 6)
    text = st.integers(0, 3)
    queries = FrameAxis(draw(sizes), 1, draw(sizes), draw(text), draw(text))
    keys = FrameAxis(draw(sizes), 1, draw(sizes), draw(text), draw(text))
    heads = draw(st.sampled_from([(), (1,), (3,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    table = torch.rand(*heads, queries.frames, keys.frames, generator=generator) < 0.4
    table[..., draw(st.integers(0, keys.frames - 1))] = True
    return table, queries, keys


@given(tables())
def test_plan_is_the_explicit_mask(drawn: tuple[Tensor, FrameAxis, FrameAxis]) -> None:
    table, queries, keys = drawn
    plan = tile_plan(table, queries, keys)
    want = explicit(table, queries, keys)
    assert torch.equal(planned(plan, queries.size, keys.size), want)
    assert plan.pairs == int(want.sum())
    assert plan.density == pytest.approx(float(want.float().mean()))
    lengths = plan.keys[..., 1] - plan.keys[..., 0]
    assert bool((lengths.sort(-1, descending=True).values[..., 0] > 0).all())
    used = plan.keys[lengths > 0]
    assert bool((used[:, 1] > used[:, 0]).all())


@given(
    k=st.integers(1, 6),
    frames=st.integers(6, 9),
    inner=st.integers(1, 7),
    before=st.integers(0, 5),
    block=st.integers(1, 9),
)
def test_block_density_counts_touched_blocks(
    k: int, frames: int, inner: int, before: int, block: int
) -> None:
    axis = FrameAxis(frames, inner=inner, before=before)
    table = TileMask(k).table(frames)
    rows = [rows.any(0) for rows in explicit(table, axis, axis)[0].split(block)]
    kept = [float(part.any()) for row in rows for part in row.split(block)]
    assert block_density(table, axis, block) == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize(
    ("frames", "k", "sparsity"),
    [(8, 4, 17.60), (8, 2, 45.47), (8, 1, 64.38), (24, 12, 21.51), (24, 8, 40.30)],
)
def test_published_block_sparsity(frames: int, k: int, sparsity: float) -> None:
    """Efficient-vDiT on Open-Sora-Plan 1.2 at 720p: 3,600 tokens a frame, 128 x 128 blocks."""
    density = block_density(TileMask(k).table(frames), FrameAxis(frames, inner=3600))
    assert round(100 * (1 - density), 2) == sparsity


class Largest(TorchDispatchMode):
    """The most entries of any tensor that is made inside."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return out


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_plan_of_120k_tokens_is_small_and_quick(mask: FrameMask) -> None:
    axis = FrameAxis(33, inner=3600, after=256)
    assert axis.size > 119_000
    with Largest() as largest:
        tile_plan(mask.table(33), axis, axis)
    assert largest.entries <= 4 * 34 * 34
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        tile_plan(mask.table(33), axis, axis)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5e-3


def test_bad_tables() -> None:
    axis = FrameAxis(3, inner=4)
    table = TileMask(1).table(3)
    table[2] = False
    with pytest.raises(ValueError, match="the queries of frame 2 with no key"):
        tile_plan(table, axis, axis)
    heads = torch.stack([TileMask(3).table(3), table])
    with pytest.raises(ValueError, match="frame 2 of head 1"):
        tile_plan(heads, axis, axis)
    joint = FrameAxis(3, inner=4, before=2)
    assert tile_plan(table, joint, joint).keys[0, 3].tolist() == [[0, 2]]
    with pytest.raises(
        ValueError, match=r"3 query and 3 key frames must be bool .* got .*\[4, 4\]"
    ):
        tile_plan(TileMask(1).table(4), axis, axis)
    with pytest.raises(ValueError, match="must be bool"):
        tile_plan(table.long(), axis, axis)
    with pytest.raises(ValueError, match="must be contiguous"):
        tile_plan(TileMask(1).table(3), FrameAxis(3, outer=2, inner=2), axis)
