"""Gradients of tile and reduced attention: those of attention written out, without an N x N tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fisopt.passes.tiling.masks import SlidingWindow, TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.reduce_attend_restore import reduce_attend_restore as reduced
from fisopt.rewrite.ops.tile_attend_masked import whole_mask
from fisopt.rewrite.ops.tile_attention import by_group_backward
from fisopt.rewrite.ops.tile_attention import tile_attention as contract
from tests.rewrite.test_tile_attention import problems
from tests.tiles import MASKS, TILE, TOLERANCES, Problem, dense, problem

MASKED = torch.ops.fisopt.tile_attend_masked.default
AXIS = FrameAxis(5, inner=6, before=2, after=3)


def learnt(posed: Problem, dtype: torch.dtype = torch.float64) -> Problem:
    """The same with operands that want a gradient; a mask that is added does too."""

    def wanting(x: Tensor) -> Tensor:
        return x.detach().to(dtype).requires_grad_(True)

    mask = posed.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = wanting(mask)
    operands = {name: wanting(getattr(posed, name)) for name in ("query", "key", "value")}
    return replace(posed, mask=mask, **operands)


def gradients(run: Callable[..., Tensor], posed: Problem) -> list[Tensor]:
    """Of a sum of all results, weighted."""
    wanted = [x for x in posed.args[:4] if isinstance(x, Tensor) and x.requires_grad]
    out = run(*posed.args)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weights).sum(), wanted))


def written_out(posed: Problem) -> Callable[..., Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
        return dense(query, key, value, posed.kept, mask, posed.scale)

    return run


def check(posed: Problem, dtype: torch.dtype = torch.float64) -> None:
    ours, exact = learnt(posed, dtype), learnt(posed)
    want = gradients(written_out(exact), exact)
    atol = 1e-9 if dtype == torch.float64 else 3 * TOLERANCES[dtype]
    for got, other in zip(gradients(TILE, ours), want, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), other, rtol=0.02 if dtype.itemsize < 4 else 1e-4, atol=atol
        )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tile", [TileMask(2), SlidingWindow(1)], ids=repr)
def test_equals_that_of_attention_written_out(tile: Any, mask: str) -> None:
    for shared in (1, 2):
        check(problem(tile.table(5), AXIS, heads=2, shared=shared, mask=mask))


@settings(max_examples=25)
@given(problems())
def test_any_plan(drawn: Problem) -> None:
    check(drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_groups_are_taken_in_float32(dtype: torch.dtype) -> None:
    """Text is read by every group, so its keys add up the gradients of all."""
    check(problem(SlidingWindow(1).table(5), AXIS, heads=2), dtype)


def test_of_some_operands_alone() -> None:
    posed = learnt(problem(TileMask(2).table(5), AXIS, heads=2))
    some = replace(posed, query=posed.query.detach(), value=posed.value.detach())
    (got,) = gradients(TILE, some)
    torch.testing.assert_close(got, gradients(TILE, posed)[1])


def test_under_a_mask_of_some_keys() -> None:
    posed = learnt(problem(TileMask(2).table(5), AXIS, heads=2))
    seen = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    seen[..., 1] = False
    start = AXIS.size - 3

    def run(*args: Any) -> Tensor:
        made: Tensor = MASKED(*args[:3], seen, start, *args[4:])
        return made

    whole = replace(posed, mask=whole_mask(seen, start, AXIS.size))
    want = gradients(written_out(whole), whole)
    for got, other in zip(gradients(run, posed), want, strict=True):
        torch.testing.assert_close(got, other)


class Largest(TorchDispatchMode):
    """Notes the most numbers that a result holds."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in pytree.tree_leaves(made) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def test_no_tensor_of_all_pairs() -> None:
    """Nor copies of the keys of all groups; the reference has both."""
    frames = 24
    axis = FrameAxis(frames, inner=32)
    posed = problem(SlidingWindow(6).table(frames), axis, heads=1, dtype=torch.float32, wider=0)
    grad = torch.ones_like(posed.query)
    with Largest() as seen:
        by_group_backward([0, 1, 2], [grad], *posed.args)
    assert 0 < seen.numbers <= posed.query.numel()
    with Largest() as seen:
        gradients(contract.reference, learnt(posed, torch.float32))
    assert seen.numbers >= axis.size**2


def test_reduced_attention_has_no_tensor_of_all_pairs_either() -> None:
    """Its gradient is that of its parts: rows that are taken, a fused attention, rows given."""
    torch.manual_seed(0)
    tokens = 256
    operands = [torch.randn(1, 2, tokens, 8, requires_grad=True) for _ in range(3)]
    kept = torch.arange(0, tokens, 2, dtype=torch.int32).expand(1, 2, -1)
    origin = (torch.arange(tokens, dtype=torch.int32) // 2).expand(1, 2, -1)
    rest = (None, kept, kept, origin, None, 4, 0, 0)
    weights = torch.randn(1, 2, tokens, 8)
    with Largest() as seen:
        _, pull = torch.func.vjp(lambda *x: reduced.implementation(*x, *rest), *operands)
        got = pull(weights)
    assert 0 < seen.numbers <= weights.numel()
    index = kept[0, 0].long()
    query, key, value = (x[:, :, index] for x in operands)
    few = (query @ key.mT / 8**0.5).softmax(-1) @ value
    want = torch.autograd.grad((few[:, :, origin[0, 0].long()] * weights).sum(), operands)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
