"""Tile attention by dense attentions against the attention written out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fisopt.codegen.kernels import dense_attention, tile_merge
from fisopt.codegen.kernels.cuts import cuts
from fisopt.errors import LoweringError
from fisopt.passes.tiling.masks import FrameTable, RadialDecay, SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attention import tile_attention as contract
from fisopt.rewrite.tile_plan import tile_plan
from tests.codegen.kernels.operators import check_operator
from tests.tiles import AVERAGED, MASKS, TILE, Problem, problem

AXES = {
    "video": FrameAxis(7, inner=5),
    "text first": FrameAxis(7, inner=4, before=3),
    "text last": FrameAxis(7, inner=3, after=6),
}
TABLES = {
    **{f"k={k}": TileMask(k).table(7) for k in range(1, 8)},
    **{f"radius {r}": SlidingWindow(r).table(7) for r in range(7)},
    "decay 1": RadialDecay(1).table(7),
    "decay 2": RadialDecay(2).table(7),
    "alternate": FrameTable([[(i - j) % 2 == 0 for j in range(7)] for i in range(7)]).table(7),
    "past": torch.ones(7, 7, device="cpu").tril().bool(),
}


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """On a CPU in float32 everywhere; what is for a GPU says so."""
    with torch.device("cpu"):
        yield


def made(table: Tensor, *axes: FrameAxis, **options: Any) -> Problem:
    return problem(table, *axes, **{"wider": 0, **options})


def check(posed: Problem) -> None:
    """Every cut of the plan is equal to the attention written out."""
    rows, keys, _ = posed.plan
    want = posed.want
    for cut in cuts(rows.tolist(), keys[0].tolist(), 4):
        got = tile_merge.run(cut, posed.query, posed.key, posed.value, posed.mask, posed.scale)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(tile_merge.launch(*posed.args), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_every_mask(axis: FrameAxis, table: Tensor) -> None:
    check(made(table, axis))
    check(made(table, axis, mask="padding", batch=1))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["k=3", "radius 2", "decay 1"])
def test_masks_of_tokens(name: str, mask: str) -> None:
    check(made(TABLES[name], AXES["text first"], mask=mask))


@settings(max_examples=40)
@given(
    table=st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    ),
    inner=st.integers(1, 4),
    text=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    mask=st.sampled_from(MASKS),
)
def test_any_table(table: list[list[bool]], inner: int, text: tuple[int, int], mask: str) -> None:
    kept = torch.tensor(table) | torch.eye(len(table), dtype=torch.bool)
    axis = FrameAxis(len(table), inner=inner, before=text[0], after=text[1])
    check(made(kept, axis, mask=mask, batch=1))


@pytest.mark.parametrize("width", [24, 64, 72, 128])
def test_widths_scale_and_shared_heads(width: int) -> None:
    check(made(TABLES["k=2"], AXES["text last"], width=width, heads=4, shared=2, scale=0.3))


@pytest.mark.parametrize("rank", [2, 3])
def test_ranks(rank: int) -> None:
    check(made(TABLES["decay 1"], AXES["video"], rank=rank, heads=1 if rank == 2 else 2))


def test_keys_of_another_sequence() -> None:
    queries, keys = FrameAxis(7, inner=3, after=2), FrameAxis(7, inner=5, before=4)
    for name in ("k=2", "radius 1", "decay 1", "alternate"):
        check(made(TABLES[name], queries, keys))


def test_queries_that_see_nothing_are_zero() -> None:
    """By the mask, where it is bool or minus infinity; or by a plan that gives them no key."""
    posed = made(TABLES["k=2"], AXES["video"])
    seen = torch.ones(2, 1, 35, 35, dtype=torch.bool)
    seen[..., 7:9, :] = False
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))):
        hidden = replace(posed, mask=mask)
        check(hidden)
        assert not tile_merge.launch(*hidden.args)[..., 7:9, :].any()
    rows, keys, _ = posed.plan
    keys[:, 3] = 0
    got = tile_merge.launch(*posed.args)
    assert not got[..., 15:20, :].any()
    torch.testing.assert_close(got, contract.reference(*posed.args), rtol=0, atol=1e-5)
    assert rows.tolist() == list(range(0, 36, 5))


def test_strides() -> None:
    """Permuted, sliced and expanded operands, as models and processors make them."""
    posed = made(TABLES["radius 2"], AXES["text first"], heads=2)

    def permuted(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def sliced(x: Tensor) -> Tensor:
        return torch.cat([x, x, x[..., :1]], -1)[..., 1 : 1 + x.shape[-1]]

    for change in (permuted, sliced):
        check(replace(posed, **{n: change(getattr(posed, n)) for n in ("query", "key", "value")}))
    check(
        replace(posed, **{n: getattr(posed, n)[:1].expand(2, -1, -1, -1) for n in ("key", "value")})
    )
    assert tile_merge.launch(*posed.args).transpose(1, 2).is_contiguous()


def test_a_plan_is_read_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = made(TABLES["k=2"], AXES["video"])
    check(posed)
    read = []
    monkeypatch.setattr(tile_merge, "cheapest", lambda *_: read.append(1))
    with pytest.raises(AttributeError):  # another number of heads makes another cut
        tile_merge.launch(*(x[:, :1] for x in posed.args[:3]), *posed.args[3:])
    tile_merge.launch(*posed.args)
    assert read == [1]
    monkeypatch.undo()
    posed.plan[1].zero_()[:, :, 0, 1] = 35
    check(replace(posed, kept=torch.ones_like(posed.kept)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "'torch.float32', 12.*a multiple of 8"),
        ({"wider": 8}, "'torch.float32', 16.*; wanted .* one type and number of features"),
        ({"scale": -1.0}, "scale is -1.0; wanted a positive one"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=f"fisopt::tile_attention: .*{message}"):
        tile_merge.launch(*made(TABLES["k=2"], AXES["video"], **options).args)


def test_heads_with_plans_of_their_own_are_refused() -> None:
    table = torch.stack([TABLES["k=1"], TABLES["k=2"]])
    with pytest.raises(LoweringError, match="2 heads have plans of their own; wanted one"):
        tile_merge.launch(*made(table, AXES["video"]).args)


def test_a_backend_that_fails_is_said_once_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no plan found")

    real = dense_attention._ON_CPU
    chain = [dense_attention.Backend("cuDNN", lambda *_: None, fails), real]
    monkeypatch.setattr(dense_attention, "backends", lambda *_: chain)
    monkeypatch.setattr(dense_attention, "_FAILED", set())
    posed = made(TABLES["k=2"], AXES["video"])
    with pytest.warns(RuntimeWarning, match="cuDNN is not used for .*: no plan found") as said:
        tile_merge.launch(*posed.args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = tile_merge.launch(*posed.args)
    torch.testing.assert_close(got, posed.want, rtol=0, atol=1e-5)
    shapes = {str(one.message).partition(":")[0] for one in said}
    assert len(said) == len(shapes), "once a shape"
    chain.pop()
    with pytest.raises(LoweringError, match=r"no dense attention of cpu takes torch.float32 que"):
        tile_merge.launch(*posed.args)


def test_with_the_kernel_that_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, in the interpreter."""
    merge, kernel = tile_merge.merge, []
    monkeypatch.setattr(
        tile_merge, "merge", lambda *args: kernel.append(1) or merge(*args[:-1], by_kernel=True)
    )
    for name, mask in (("k=2", "none"), ("decay 1", "padding")):
        posed = made(TABLES[name], AXES["text first"], mask=mask)
        got = tile_merge.launch(*posed.args)
        torch.testing.assert_close(got, posed.want, rtol=0, atol=1e-5)
    assert kernel


def test_operator() -> None:
    posed = made(TABLES["k=2"], AXES["text last"], heads=2, mask="padding")
    check_operator(TILE, tile_merge.launch, posed.args)


GPU_AXIS = FrameAxis(11, inner=1560, after=226)
GPU_TABLES = {
    "k=3": TileMask(3).table(11),
    "radius 2": SlidingWindow(2).table(11),
    "decay 1": RadialDecay(1).table(11),
}


def on_gpu(table: Tensor, width: int = 128, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    """Operands as models lay them out, and a plan; too many tokens to write the mask out."""
    plan = tile_plan(table.cuda(), GPU_AXIS, GPU_AXIS)
    operands = torch.randn(3, 2, GPU_AXIS.size, 4, width, dtype=dtype, device="cuda")
    return (*operands.transpose(2, 3), None, plan.rows, plan.keys, plan.pairs, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("table", GPU_TABLES.values(), ids=GPU_TABLES)
def test_frames_of_a_video_on_a_gpu(table: Tensor, width: int, dtype: torch.dtype) -> None:
    query, key, value, _, *rest = on_gpu(table, width, dtype)
    padding = torch.rand(2, 1, 1, GPU_AXIS.size, device="cuda") < 0.9
    for mask in (None, padding, padding.to(dtype)):
        args = (query, key, value, mask, *rest)
        want = contract.implementation(*args)
        for cut in cuts(rest[0].tolist(), rest[1][0].tolist(), 8):
            got = tile_merge.run(cut, query, key, value, mask, None)
            torch.testing.assert_close(got, want, rtol=0, atol=AVERAGED[dtype])
        got = tile_merge.launch(*args)
        torch.testing.assert_close(got, want, rtol=0, atol=AVERAGED[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("table", GPU_TABLES.values(), ids=GPU_TABLES)
def test_after_its_first_call_nothing_waits_for_a_gpu(table: Tensor) -> None:
    args = on_gpu(table)
    want = tile_merge.launch(*args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = tile_merge.launch(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tile_merge.launch(*args)
    for x in args[:3]:
        x.copy_(x.flip(1))
    graph.replay()
    torch.testing.assert_close(captured, tile_merge.launch(*args), rtol=0, atol=0)
    assert not torch.equal(captured, want)
