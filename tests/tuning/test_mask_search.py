"""Mask search: what is measured equals the model's own blocks, and what is chosen is best."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fisopt import (
    InputError,
    Program,
    RadialDecay,
    SlidingWindow,
    TileAttention,
    TileMask,
    predicted_ratio,
)
from fisopt.passes.tiling.masks import FrameMask
from fisopt.tuning.attention_map import frame_maps
from fisopt.tuning.mask_choice import Measurements
from fisopt.tuning.mask_errors import Calls, default_candidates, joint_error, tile_candidates
from tests.conftest import captured
from tests.passes.loop import blocks_of
from tests.passes.tiled import tiled
from tests.zoo import Case, zoo

GRID = (5, 3, 4)
MASKS: tuple[FrameMask, ...] = (TileMask(1), SlidingWindow(1))


def test_candidates_differ() -> None:
    assert tile_candidates(16) == tuple(map(TileMask, (1, 2, 3, 4, 6, 8)))
    assert default_candidates(2) == ()
    for frames in range(3, 34):
        for masks in (tile_candidates(frames), default_candidates(frames)):
            tables = [mask.table(frames) for mask in masks]
            sizes = [int(table.sum()) for table in tables]
            assert sizes == sorted(sizes)
            assert sizes[-1] < frames**2
            assert len({tuple(table.flatten().tolist()) for table in tables}) == len(masks)
        assert set(tile_candidates(frames)) <= set(masks)
    kinds = {type(mask) for mask in default_candidates(16)}
    assert kinds == {TileMask, SlidingWindow, RadialDecay}


@pytest.mark.parametrize("case", [zoo()["wan"], zoo()["cogvideox_2b"]], ids=lambda c: c.name)
def test_errors_are_those_of_the_models_own_blocks(case: Case, program: Program) -> None:
    """One block at a time under an explicit mask, by hooks: how far its video moves."""
    inputs = case.inputs(*GRID, batch=2)
    calls = Calls.of(program, MASKS)
    got = np.array(calls.errors(inputs))
    blocks = blocks_of(case.family.name, case.model, GRID[1] * GRID[2], 2)
    assert got.shape == (len(blocks), len(MASKS))
    for i, block in enumerate(blocks):
        videos: list[Tensor] = []

        def seen(module: Any, args: Any, out: Any) -> None:
            videos.append(out[0] if isinstance(out, tuple) else out)  # noqa: B023

        handle = block.module.register_forward_hook(seen)
        for mask in (None, *MASKS):
            each = [mask if j == i else None for j in range(len(blocks))]
            with torch.no_grad(), tiled(blocks, each):
                case.model(**inputs)
        handle.remove()
        want = [float((v - videos[0]).norm() / videos[0].norm()) for v in videos[1:]]
        assert got[i] == pytest.approx(want, rel=1e-3)
        assert min(want) > 1e-4


def test_blocks_without_video_attention_stay_out() -> None:
    found = Measurements(("a", "b"), MASKS, [[5.0, 6.0, 10.0], [7.0, 7.0, 7.0]], 20.0)
    found.errors = [[[0.1, 0.1], [0.0, 0.0]]]
    assert dict(found.within(1.0).items()) == {"a": MASKS[0], "b": None}
    assert dict(found.for_ratio(1.2).items()) == {"a": MASKS[0], "b": None}


def measurements(draw: st.DrawFn) -> Measurements:
    blocks = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    masks = (TileMask(1), TileMask(2), TileMask(3))
    flops = np.sort(rng.uniform(1, 9, (blocks, 3)), axis=1)
    rows = [[*row, 10.0] for row in flops.tolist()]
    errors = rng.uniform(0.01, 1, (2, blocks, 3)).tolist()
    names = tuple(f"blocks.{i}" for i in range(blocks))
    return Measurements(names, masks, rows, 10.0 * blocks + 5.0, errors)


known = st.composite(measurements)()


@given(known, st.floats(0.05, 1.0))
def test_threshold_takes_the_sparsest_that_fits(found: Measurements, threshold: float) -> None:
    worst = found.worst()
    for b, (_, mask) in enumerate(found.within(threshold).items()):
        fit = [c for c in range(3) if worst[b, c] <= threshold]
        if not fit:
            assert mask is None
        else:
            assert mask == found.candidates[min(fit, key=found.flops[b].__getitem__)]


@given(known, st.floats(1.0, 2.0))
def test_target_ratio_is_the_best_of_all_tables(found: Measurements, ratio: float) -> None:
    """Against trying every table."""
    squares = np.square(np.array(found.errors)).mean(axis=0)
    best = None
    for picks in itertools.product(range(4), repeat=len(found.blocks)):
        cost = 5.0 + sum(found.flops[b][c] for b, c in enumerate(picks))
        error = sum(squares[b, c] for b, c in enumerate(picks) if c < 3)
        if cost <= found.total / ratio and (best is None or error < best):
            best = error
    if best is None:
        with pytest.raises(ValueError, match=r"out of reach: .* times cheaper"):
            found.for_ratio(ratio)
        return
    table = found.for_ratio(ratio)
    assert found.ratio(table) >= ratio * (1 - 1e-6)
    column = {mask: c for c, mask in enumerate(found.candidates)}
    error = sum(squares[b, column[m]] for b, (_, m) in enumerate(table.items()) if m is not None)
    assert error == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_bad_requests(wan: Program) -> None:
    found = Measurements.of(Calls.of(wan, MASKS))
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold must be more than 0"):
            found.within(threshold)
    with pytest.raises(ValueError, match=r"target ratio must be at least 1, got 0\.5"):
        found.for_ratio(0.5)
    with pytest.raises(InputError, match="no forward call has been measured"):
        found.within(0.1)
    found.errors = [[[0.1, 0.1]] * 4, [[0.1, 0.1]] * 3 + [[0.1, float("nan")]]]
    with pytest.raises(
        InputError, match=r"SlidingWindow\(radius=1\) in blocks\.3 at call 1 is nan"
    ):
        found.within(0.2)
    with pytest.raises(InputError, match="is nan, wanted a number"):
        found.for_ratio(1.1)
    with pytest.raises(InputError, match="every candidate mask is dense"):
        Calls.of(wan, ())


def test_costs_and_the_joint_check(wan: Program) -> None:
    inputs = zoo()["wan"].inputs(*GRID, batch=2)
    calls = Calls.of(wan, MASKS)
    found = Measurements.of(calls)
    found.errors = [calls.errors(inputs)]
    table = found.within(10.0)
    sparse = TileAttention(table=table)(wan).program
    assert found.ratio(table) == pytest.approx(predicted_ratio(wan, sparse))
    joint = joint_error(wan, sparse, inputs)
    want, got = wan(**inputs)[0], sparse(**inputs)[0]
    assert joint == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-4)
    assert joint > 0
    assert joint_error(wan, wan, inputs) == 0


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "latte"])
def test_maps_are_shares_of_attention(name: str) -> None:
    """Rows add up to what video gets; the first block's map is that of its own queries and keys."""
    case = zoo()[name]
    program = captured(name)
    inputs = case.inputs(*GRID, batch=2)
    maps = frame_maps(program, inputs)
    joined = name == "hunyuan_video"
    assert len(maps) == len(program.blocks) // (2 if name == "latte" else 1)
    for share in maps.values():
        assert share.shape == (5, 5)
        assert bool((share > 0).all())
        total = share.sum(1)
        assert bool((total < 1).all()) if joined else torch.allclose(total, torch.ones(5))
    recorded: list[tuple[Tensor, Tensor]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.shape[-2] == key.shape[-2] == 60:
            recorded.append((query, key))
        return attend(query, key, *args, **kwargs)

    if name == "wan":
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
            case.model(**inputs)
        for share, (query, key) in zip(maps.values(), recorded, strict=True):
            weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
            want = weights.unflatten(-1, (5, 12)).sum(-1).unflatten(-2, (5, 12)).mean(-2)
            torch.testing.assert_close(share, want.mean((0, 1)), rtol=1e-4, atol=1e-6)
