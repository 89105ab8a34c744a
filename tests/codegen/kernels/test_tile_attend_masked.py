"""Tile attention whose mask speaks of some keys only, against the attention written out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fisopt.codegen.kernels import tile_attend_masked, tile_merge
from fisopt.codegen.kernels.cuts import cuts
from fisopt.codegen.kernels.pieces import apart
from fisopt.codegen.kernels.tile_attend_masked import divided
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attend_masked import tile_attend_masked as contract
from fisopt.rewrite.ops.tile_attend_masked import whole_mask
from fisopt.rewrite.tile_plan import tile_plan
from tests.codegen.kernels.test_tile_merge import AXES, TABLES, made
from tests.tiles import AVERAGED


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with torch.device("cpu"):
        yield


def check(table: Tensor, axis: FrameAxis, hidden: tuple[int, int]) -> None:
    """Every cut, divided at the hidden keys, and the contract itself."""
    posed = made(table, axis, batch=2)
    start, end = hidden
    mask = torch.rand(2, 1, 1, end - start) > 0.5
    mask[1] = False
    args = (posed.query, posed.key, posed.value, mask, start, *posed.plan, posed.scale)
    want = contract.reference(*args)
    visible = want.isfinite()  # a query that sees no key at all is not defined
    whole = whole_mask(mask, start, posed.key.shape[-2])
    rows, keys, _ = posed.plan
    for cut in cuts(rows.tolist(), keys[0].tolist(), 4):
        parts = divided(cut, hidden)
        operands = (posed.query, posed.key, posed.value, whole, posed.scale, hidden)
        got = tile_merge.run(parts, *operands)
        torch.testing.assert_close(got[visible], want[visible], rtol=0, atol=1e-5)
        assert all(len(apart(p.keys, hidden)) == 1 for p in parts.pieces if p.windows == 1)
    for got in (tile_attend_masked.launch(*args), contract.implementation(*args)):
        torch.testing.assert_close(got[visible], want[visible], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["k=1", "k=3", "radius 2", "decay 1"])
def test_text(name: str) -> None:
    check(TABLES[name], AXES["text first"], (0, 3))
    check(TABLES[name], AXES["text last"], (21, 27))


@settings(max_examples=30)
@given(
    table=st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    ),
    inner=st.integers(1, 4),
    text=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_anywhere(
    table: list[list[bool]], inner: int, text: tuple[int, int], place: tuple[float, float]
) -> None:
    """Also inside windows, which then keep their mask."""
    kept = torch.tensor(table) | torch.eye(len(table), dtype=torch.bool)
    axis = FrameAxis(len(table), inner=inner, before=text[0], after=text[1])
    start, end = sorted(int(x * axis.size) for x in place)
    check(kept, axis, (min(start, axis.size - 1), max(end, min(start, axis.size - 1) + 1)))


def test_ranges_apart() -> None:
    assert apart([(0, 4), (6, 9)], (2, 7)) == [((0, 2), (7, 9)), ((2, 4), (6, 7))]
    assert apart([(0, 4)], (4, 9)) == [((0, 4),)]
    assert apart([(0, 4)], (0, 9)) == [((0, 4),)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["k=3", "radius 2", "decay 1"])
def test_a_video_on_a_gpu(name: str) -> None:
    axis = FrameAxis(7, inner=1200, after=300)
    plan = tile_plan(TABLES[name].cuda(), axis, axis)
    operands = torch.randn(3, 2, axis.size, 4, 128, dtype=torch.bfloat16, device="cuda")
    mask = torch.rand(2, 1, 1, 300, device="cuda") < 0.5
    args = (*operands.transpose(2, 3), mask, 8400, plan.rows, plan.keys, plan.pairs, None)
    want = contract.implementation(*args)
    for got in (tile_attend_masked.launch(*args), contract.target(*args)):
        torch.testing.assert_close(got, want, rtol=0, atol=AVERAGED[torch.bfloat16])
