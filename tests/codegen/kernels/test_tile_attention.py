"""The kernel of tile attention against the attention written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fisopt.codegen.kernels import tile_attention as kernel
from fisopt.codegen.kernels.launching import architecture_of
from fisopt.errors import LoweringError
from fisopt.passes.tiling.masks import SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attention import tile_attention as contract
from fisopt.rewrite.tile_plan import tile_plan
from tests.codegen.kernels.operators import check_operator
from tests.codegen.kernels.plans import any_plan
from tests.tiles import AVERAGED, MASKS, TILE, TOLERANCES, Problem, problem

DTYPES = (torch.bfloat16, torch.float16)
AXES = {
    "one token": FrameAxis(1, inner=1),
    "odd": FrameAxis(3, inner=7, before=5),
    "not a power of two": FrameAxis(2, inner=48, after=9),
    "larger than a block": FrameAxis(2, inner=150, after=1),
}
SMALL = kernel.CONFIGS[-1]
DESCRIBED = kernel.CONFIGS[4]


def ids(config: Any) -> str:
    return "-".join(map(str, (*config.kwargs.values(), config.num_warps, config.num_stages)))


def made(axis: FrameAxis, **options: Any) -> Problem:
    given = {"heads": 1, "batch": 1, "width": 16, "wider": 0, "dtype": torch.bfloat16} | options
    return problem(TileMask(1).table(axis.frames), axis, **given)


def check(posed: Problem, config: Any = SMALL) -> Tensor:
    got = kernel.launch(*posed.args, config=config)
    tolerance = TOLERANCES[posed.query.dtype]
    torch.testing.assert_close(got, posed.want, rtol=0, atol=tolerance)
    return got


@pytest.mark.parametrize("config", kernel.CONFIGS, ids=ids)
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_every_config(axis: FrameAxis, config: Any, exhaustive: bool) -> None:
    """Both types in turns, or at every place with --exhaustive."""
    turn = (kernel.CONFIGS.index(config) + list(AXES.values()).index(axis)) % 2
    for dtype in DTYPES if exhaustive else DTYPES[turn : turn + 1]:
        check(made(axis, dtype=dtype), config)


@settings(max_examples=20)
@given(posed=any_plan(width=16), config=st.sampled_from([SMALL, DESCRIBED]))
def test_any_plan(posed: Problem, config: Any) -> None:
    check(posed, config)


@pytest.mark.parametrize("config", [SMALL, DESCRIBED], ids=ids)
@pytest.mark.parametrize("width", [48, 64, 80, 256])
def test_widths(width: int, config: Any) -> None:
    """Widths that are no power of two are padded, and values may be of another width."""
    check(made(AXES["odd"], width=width, wider=16 if width < 256 else -16), config)


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    check(made(AXES["odd"], mask=mask, heads=2, batch=2))
    check(made(AXES["not a power of two"], mask=mask), DESCRIBED)


def test_heads_of_their_own_and_shared_keys() -> None:
    table = torch.rand(4, 2, 2) < 0.4
    table[..., 1] = True
    axis = FrameAxis(2, inner=7, before=5)
    options = {"heads": 4, "batch": 1, "width": 16, "wider": 0, "dtype": torch.float16}
    for shared, config in ((1, SMALL), (2, DESCRIBED), (4, SMALL)):
        check(problem(table, axis, shared=shared, **options), config)


def test_keys_of_another_sequence() -> None:
    queries, keys = FrameAxis(3, inner=5), FrameAxis(2, inner=20, before=3)
    table = torch.tensor([[True, False], [True, True], [False, True]])
    options = {"heads": 1, "batch": 1, "width": 16, "wider": 0, "dtype": torch.float16}
    check(problem(table, queries, keys, **options))


@pytest.mark.parametrize("rank", [2, 3])
def test_ranks_and_scale(rank: int) -> None:
    check(made(AXES["odd"], rank=rank, scale=0.7))


@pytest.mark.parametrize("config", [SMALL, DESCRIBED], ids=ids)
def test_strides(config: Any) -> None:
    """Permuted, sliced and expanded operands."""
    posed = made(AXES["odd"], heads=2, batch=2)

    def permuted(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def sliced(x: Tensor) -> Tensor:
        room = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
        room[..., : x.shape[-1]] = x
        return room[..., : x.shape[-1]]

    want = check(posed, config)
    for change in (permuted, sliced):
        operands = {name: change(getattr(posed, name)) for name in ("query", "key", "value")}
        assert not operands["key"].is_contiguous()
        assert torch.equal(check(replace(posed, **operands), config), want)
    shared = {name: getattr(posed, name)[:1].expand(2, -1, -1, -1) for name in ("key", "value")}
    check(replace(posed, **shared))


def test_operands_out_of_line_take_the_kernel_without_descriptors() -> None:
    posed = made(AXES["odd"])
    room = posed.key.new_empty(posed.key.numel() + 1)
    key = room[1:].view_as(posed.key).copy_(posed.key)
    check(replace(posed, key=key), None)
    check(posed, None)


def test_log_sum_exp() -> None:
    for axis, config in ((AXES["odd"], SMALL), (AXES["not a power of two"], DESCRIBED)):
        posed = made(axis, dtype=torch.float16, heads=2)
        out, lse = kernel.launch_with_lse(*posed.args, config=config)
        assert torch.equal(out, kernel.launch(*posed.args, config=config))
        scores = posed.query.double() @ posed.key.double().transpose(-1, -2) / 4
        want = scores.masked_fill(~posed.kept, float("-inf")).logsumexp(-1)
        torch.testing.assert_close(lse.double(), want, rtol=0, atol=1e-3)


def test_queries_that_see_nothing_are_zero() -> None:
    posed = made(AXES["odd"])
    mask = torch.ones(1, 1, 26, 26, dtype=torch.bool)
    mask[..., 8, :] = False
    out, lse = kernel.launch_with_lse(*replace(posed, mask=mask).args, config=SMALL)
    assert bool((out[..., 8, :] == 0).all())
    assert lse[0, 0, 8] == float("-inf")
    assert bool(out.isfinite().all())
    assert bool(lse[..., 9:].isfinite().all())


@pytest.mark.parametrize("config", [SMALL, DESCRIBED], ids=ids)
def test_skipped_keys_do_not_show(config: Any) -> None:
    """Keys behind a range are in the last block of it, but never in its result."""
    axis = FrameAxis(6, inner=40)
    options = {"heads": 1, "batch": 1, "width": 16, "wider": 0, "dtype": torch.float16}
    posed = problem(SlidingWindow(1).table(6), axis, **options)
    want = check(posed, config)
    spoilt = {name: getattr(posed, name).clone() for name in ("key", "value")}
    for x in spoilt.values():
        x[..., 120:, :] = float("nan")
    got = kernel.launch(*replace(posed, **spoilt).args, config=config)
    assert torch.equal(got[..., :80, :], want[..., :80, :])
    assert bool(got[..., 80:, :].isnan().any(-1).all())


def test_the_work_list_of_a_changed_plan_is_made_again() -> None:
    posed = made(AXES["odd"])
    check(posed)
    rows, keys = posed.plan[:2]
    keys[:, :, 0], keys[:, :, 1:] = torch.tensor([0, 26]), 0
    rows.copy_(torch.tensor([0, 2, 3, 4, 26]))
    check(replace(posed, kept=torch.ones_like(posed.kept)))


REFUSED = {
    "torch.float32": {"query": torch.float32, "key": torch.float32, "value": torch.float32},
    "the same for query, key and value": {"key": torch.float16},
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_types_that_are_refused(wanted: str) -> None:
    posed = made(AXES["odd"])
    changed = {name: getattr(posed, name).to(dtype) for name, dtype in REFUSED[wanted].items()}
    with pytest.raises(LoweringError, match=rf"fisopt::tile_attention: .*{wanted}"):
        kernel.launch(*replace(posed, **changed).args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 24}, "24 features a head; the kernel takes multiples of 16 up to 256"),
        ({"width": 272}, "272 features"),
        ({"scale": -1.0}, "scale is -1.0; the kernel takes positive scales"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=f"fisopt::tile_attention: .*{message}"):
        kernel.launch(*made(AXES["odd"], **options).args)


def test_five_dimensions_are_refused() -> None:
    posed = made(AXES["odd"])
    operands = {name: getattr(posed, name)[None] for name in ("query", "key", "value")}
    with pytest.raises(LoweringError, match="two to four dimensions"):
        kernel.launch(*replace(posed, **operands).args)


def test_operator() -> None:
    check_operator(TILE, kernel.launch, made(AXES["odd"], heads=2, mask="padding").args)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 96, 128])
def test_frames_of_a_video_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    axis = FrameAxis(11, inner=1560, after=226)
    posed = gpu_problem(axis, width, dtype)
    want = contract.implementation(*posed)
    overlapped = [kernel.OVERLAPPED] if kernel.overlaps(width, architecture_of(want), True) else []
    for config in (None, *kernel.CONFIGS, *overlapped):
        got = kernel.launch(*posed, config=config)
        torch.testing.assert_close(got, want, rtol=0, atol=AVERAGED[dtype])
    torch.testing.assert_close(TILE(*posed), want, rtol=0, atol=AVERAGED[dtype])
    assert torch.equal(TILE(*posed), TILE(*posed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_addresses_behind_the_first_4_gib_on_a_gpu() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    query, *rest = gpu_problem(FrameAxis(9, inner=20000), 128, torch.bfloat16)
    wide = query.new_empty(1, query.shape[2], 100, 128).transpose(1, 2)  # 4.6 GB a tensor
    many = wide.normal_()
    got = kernel.launch(many, many, many, *rest[2:])
    want = contract.implementation(*(many[:, -1:].contiguous(),) * 3, *rest[2:])
    torch.testing.assert_close(got[:, -1:], want, rtol=0, atol=TOLERANCES[torch.bfloat16])


def gpu_problem(axis: FrameAxis, width: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Operands as models lay them out, and a plan; too many tokens to write the mask out."""
    plan = tile_plan(TileMask(3).table(axis.frames).to("cuda"), axis, axis)
    operands = torch.randn(3, 2, axis.size, 4, width, dtype=dtype).transpose(2, 3)
    return (*operands, None, plan.rows, plan.keys, plan.pairs, None)
