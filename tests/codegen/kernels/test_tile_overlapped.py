"""The kernel that overlaps softmax and products, emulated where there is no GPU of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fisopt.codegen.kernels import tile_attention as kernel
from fisopt.errors import LoweringError
from fisopt.passes.tiling.masks import TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attention import empty_result
from tests.codegen.kernels.emulation import run
from tests.codegen.kernels.plans import any_plan
from tests.tiles import TOLERANCES, Problem, problem

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="emulates a GPU on a CPU")
OPTIONS = {"width": 64, "wider": 0, "batch": 1, "dtype": torch.float16}


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> Iterator[None]:
    """The kernel is not interpreted, so it is not refused as one that is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "interpreted", lambda: False)
        yield


def emulated(posed: Problem, **changed: Tensor) -> tuple[Tensor, Tensor]:
    """Result and log-sum-exp of changed operands, compared with the attention written out."""
    query, key, value, mask, rows, keys, _, scale = replace(posed, **changed).args
    out, lse = empty_result(query, value), query.new_empty(query.shape[:-1], dtype=torch.float32)
    run(kernel.prepare(query, key, value, mask, rows, keys, scale, out, lse, kernel.OVERLAPPED))
    torch.testing.assert_close(out, posed.want, rtol=0, atol=TOLERANCES[query.dtype])
    return out, lse


@settings(max_examples=25)
@given(posed=any_plan(width=64, masks=["none"], tokens=800, edges=(0, 128, 256, 640)))
def test_any_plan(posed: Problem) -> None:
    emulated(posed)


@pytest.mark.parametrize("inner", [1, 128, 150, 300])
def test_frames(inner: int) -> None:
    """A list of one block, of whole blocks only, and of both kinds."""
    axis = FrameAxis(3, inner=inner, after=1)
    posed = problem(TileMask(1).table(3), axis, heads=1, **OPTIONS)
    _, lse = emulated(posed)
    scores = posed.query.double() @ posed.key.double().transpose(-1, -2) / 8
    want = scores.masked_fill(~posed.kept, float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse.double(), want, rtol=0, atol=1e-3)


def test_widths() -> None:
    """Keys of 128 features; values of fewer."""
    posed = problem(
        TileMask(1).table(2), FrameAxis(2, inner=140), heads=1, **OPTIONS | {"width": 128}
    )
    emulated(posed)
    emulated(replace(posed, value=posed.value[..., :96].contiguous()))


def test_skipped_keys_do_not_show() -> None:
    """Frames that nobody keeps are in the blocks of those before them."""
    table = torch.tensor([[True, False, True, False]] * 4)
    posed = problem(table, FrameAxis(4, inner=40), heads=1, **OPTIONS)
    spoilt = {name: getattr(posed, name).clone() for name in ("key", "value")}
    for x in spoilt.values():
        x.unflatten(-2, (4, 40))[..., 1::2, :, :] = float("nan")
    want, _ = emulated(posed)
    got, _ = emulated(posed, **spoilt)
    assert torch.equal(got, want)


@pytest.mark.parametrize("change", [{"width": 32}, {"width": 256}, {"mask": "padding"}])
def test_what_is_refused(change: dict[str, object]) -> None:
    posed = problem(TileMask(1).table(2), FrameAxis(2, inner=9), **{**OPTIONS, **change})
    with pytest.raises(LoweringError, match="takes 64 or 128 features, no mask"):
        kernel.launch(*posed.args, config=kernel.OVERLAPPED)


def test_an_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "interpreted", lambda: True)
    posed = problem(TileMask(1).table(2), FrameAxis(2, inner=9), **OPTIONS)
    with pytest.raises(LoweringError, match="what a descriptor can read on sm_90"):
        kernel.launch(*posed.args, config=kernel.OVERLAPPED)
