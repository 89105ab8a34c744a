"""Reduced attention by gathers around a dense one, against reducing, attending and restoring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fisopt.codegen.bindings import takers
from fisopt.codegen.kernels import reduce_dense as kernel
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.reduce_attend_restore import reduce_attend_restore
from tests.codegen.kernels.operators import check_operator
from tests.codegen.kernels.test_reduce_attend_restore import DTYPES, FUSED, SHAPES, made
from tests.tiles import TOLERANCES


def check(args: tuple[Any, ...]) -> None:
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    want = reduce_attend_restore.reference(*wide).to(args[0].dtype)
    got = kernel.launch(*args)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCES.get(got.dtype, 1e-5))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
def test_shapes(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(made(shape, dtype, lead=(2, 3)))


@pytest.mark.parametrize(
    ("lead", "mask"),
    [((), "none"), ((3,), "none"), ((3,), "bias"), *(((2, 2), m) for m in ("padding", "bias"))],
    ids=str,
)
def test_masks_dimensions_and_all_keys(lead: tuple[int, ...], mask: str) -> None:
    args = list(made((9, 5, 7, 7), lead=lead, mask=mask, scale=0.3))
    check(tuple(args))
    args[5] = None
    check(tuple(args))


def test_layouts() -> None:
    """As models have them, inside one tensor of all three, and with gaps that are no rows."""
    args = list(made(SHAPES["odd"], lead=(2, 3)))
    together = torch.randn(2, 9, 3, 3, 16, dtype=torch.bfloat16)
    args[0] = together[:, :, 0].transpose(1, 2)
    args[1:3] = (together[:, :7, i].transpose(1, 2) for i in (1, 2))
    check(tuple(args))
    args[0] = torch.randn(2, 3, 9, 20, dtype=torch.bfloat16)[..., :16]
    check(tuple(args))
    args[0] = torch.randn(1, 3, 9, 16, dtype=torch.bfloat16).expand(2, -1, -1, -1)
    check(tuple(args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 12}, "a multiple of 8"),
        ({"wider": 16}, "number of features for all"),
        ({"lead": (1, 1, 1)}, "two to four dimensions"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=f"fisopt::reduce_attend_restore: .*{message}"):
        kernel.launch(*made(SHAPES["odd"], **change))


def test_heads_that_share_keys_are_refused() -> None:
    args = list(made(SHAPES["odd"], lead=(1, 2)))
    args[1:3] = (x[:, :1] for x in args[1:3])
    with pytest.raises(
        LoweringError, match=r"batch items and heads \[\[1, 2\], \[1, 1\], \[1, 1\]\]"
    ):
        kernel.launch(*args)


def test_it_is_what_runs_where_nothing_was_measured() -> None:
    took, _ = takers(FUSED, made(SHAPES["odd"]))
    assert next(iter(took)) == "dense"


def test_operator() -> None:
    check_operator(FUSED, kernel.launch, made(SHAPES["odd"], lead=(1, 2)))


@pytest.mark.parametrize("lead", [(), (2,), (1, 2), (2, 2)], ids=str)
def test_results_lie_in_memory_as_the_contract_says(lead: tuple[int, ...]) -> None:
    args = made(SHAPES["odd"], lead=lead)
    assert kernel.launch(*args).stride() == FUSED(*args).stride()
