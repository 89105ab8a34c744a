"""The kernel of reduced attention against reducing, attending and restoring one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fisopt.codegen.kernels import reduce_attend_restore as kernel
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.reduce_attend_restore import reduce_attend_restore
from tests.codegen.kernels.operators import check_operator
from tests.tiles import AVERAGED, TOLERANCES

FUSED = torch.ops.fisopt.reduce_attend_restore.default
DTYPES = (torch.bfloat16, torch.float16)
SMALL = kernel.CONFIGS[-1]
SHAPES = {
    "one token": (1, 1, 1, 1),
    "odd": (9, 5, 7, 3),
    "not a power of two": (96, 48, 96, 80),
    "larger than a block": (300, 131, 210, 130),
}
"""Entries, kept queries, entries of the keys, kept keys."""


def ids(config: Any) -> str:
    return "-".join(map(str, (*config.kwargs.values(), config.num_warps, config.num_stages)))


def subsets(lead: tuple[int, ...], of: int, count: int) -> Tensor:
    """For each leading index some increasing positions, its own."""
    return torch.rand(*lead, of).argsort(-1)[..., :count].sort(-1).values.int()


def made(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.bfloat16,
    lead: tuple[int, ...] = (1, 1),
    mask: str = "none",
    width: int = 16,
    wider: int = 0,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """The contract's arguments; entries restore from any kept one, some from none."""
    entries, queries, others, keys = shape
    q, k, v = (
        torch.randn(*lead, size, features, dtype=dtype)
        for size, features in ((entries, width), (others, width), (others, width + wider))
    )
    extra = {
        "none": None,
        "padding": torch.rand(*lead, 1, keys) < 0.7,
        "bias": torch.randn(1, queries, keys, dtype=dtype),
    }[mask]
    origin = torch.randint(queries, (*lead, entries), dtype=torch.int32)
    kept = (subsets(lead, entries, queries), subsets(lead, others, keys))
    return (q, k, v, extra, *kept, origin, scale, 0, 0, 0)


def check(args: tuple[Any, ...], config: Any = SMALL) -> None:
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    want = reduce_attend_restore.reference(*wide).to(args[0].dtype)
    got = kernel.launch(*args, config=config)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCES[got.dtype])


@pytest.mark.parametrize("config", kernel.CONFIGS, ids=ids)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_config(shape: tuple[int, int, int, int], config: Any, exhaustive: bool) -> None:
    """Both types in turns, or at every place with --exhaustive."""
    turn = (kernel.CONFIGS.index(config) + list(SHAPES.values()).index(shape)) % 2
    for dtype in DTYPES if exhaustive else DTYPES[turn : turn + 1]:
        check(made(shape, dtype), config)


@pytest.mark.parametrize("mask", ["none", "padding", "bias"])
def test_masks_heads_and_all_keys(mask: str) -> None:
    args = made(SHAPES["odd"], lead=(2, 2), mask=mask, scale=0.3)
    check(args)
    every = made((9, 5, 7, 7), torch.float16, lead=(2,), mask=mask)
    check((*every[:5], None, *every[6:]))


@pytest.mark.parametrize("width", [48, 128])
def test_widths(width: int) -> None:
    check(made(SHAPES["odd"], width=width, wider=16))


def test_strides() -> None:
    args = made(SHAPES["odd"], lead=(2, 2))
    permuted = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in args[:3]]
    check((*permuted, *args[3:]))
    sliced = [torch.cat([x, x], -1)[..., :16] for x in args[:3]]
    check((*sliced, *args[3:]))
    index = args[4].transpose(0, 2).contiguous().transpose(0, 2)
    assert not index.is_contiguous()
    check((*args[:4], index, *args[5:]))


def test_one_row_for_which_nearly_all_entries_wait() -> None:
    """All restore from one kept query, and one of the others is in another block."""
    args = list(made(SHAPES["larger than a block"]))
    args[6] = torch.full_like(args[6], 77)
    args[6][..., 5] = 130
    check(tuple(args))


def test_the_inverse_of_a_changed_match_is_made_again() -> None:
    args = made(SHAPES["odd"])
    check(args)
    args[6].copy_(args[6].flip(-1))
    check(args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float32}, "query is torch.float32"),
        ({"width": 24}, "24 features a head; the kernel takes multiples of 16 up to 256"),
        ({"scale": 0.0}, "scale is 0.0; the kernel takes positive scales"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=f"fisopt::reduce_attend_restore: .*{message}"):
        kernel.launch(*made(SHAPES["odd"], **change))


def test_grouped_heads_are_refused() -> None:
    args = list(made(SHAPES["odd"], lead=(1, 2)))
    args[1:3] = [x[:, :1] for x in args[1:3]]
    with pytest.raises(LoweringError, match="as many heads of keys as of queries"):
        kernel.launch(*args)


def test_operator() -> None:
    check_operator(FUSED, kernel.launch, made(SHAPES["odd"], lead=(1, 2)))


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_contract(mask: str) -> None:
    """The operator in plain torch, against its reference, and what torch asks of operators."""
    args = made(SHAPES["odd"], torch.float32, lead=(2, 2), mask=mask)
    torch.testing.assert_close(FUSED(*args), reduce_attend_restore.reference(*args))
    assert FUSED(*args).transpose(1, 2).is_contiguous()
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(FUSED, args, test_utils=tests)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_video_on_a_gpu(dtype: torch.dtype) -> None:
    args = made((17160, 9000, 17160, 8000), dtype, lead=(2, 4), width=128)
    want = reduce_attend_restore.reference(*args)
    for config in (None, *kernel.CONFIGS):
        got = kernel.launch(*args, config=config)
        torch.testing.assert_close(got, want, rtol=0, atol=AVERAGED[dtype])
    torch.testing.assert_close(FUSED(*args), want, rtol=0, atol=AVERAGED[dtype])
