"""The op contracts: references against naive loops over random layouts, and their registration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fisopt.passes.frame_interleave import anchor_frames, interpolation
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.fill_frames import FILLS

GATHER = torch.ops.fisopt.gather_frames.default
FILL = torch.ops.fisopt.fill_frames.default

layouts = st.builds(
    FrameAxis,
    frames=st.integers(3, 9),
    outer=st.integers(1, 3),
    inner=st.integers(1, 4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
strides = st.integers(2, 4)
residues = st.integers(0, 3)


def entry(axis: FrameAxis, o: int, f: int, i: int) -> int:
    return axis.before + (o * axis.frames + f) * axis.inner + i


def tensor_of(axis: FrameAxis, dim: int) -> Tensor:
    sizes = [2, 3]
    sizes.insert(dim, axis.size)
    return torch.randn(sizes, dtype=torch.float64)


@given(frames=st.integers(3, 40), stride=st.integers(1, 8), block=st.integers(0, 20))
def test_anchors(frames: int, stride: int, block: int) -> None:
    stride = min(stride, frames)
    runs = [anchor_frames(frames, stride, (block + i) % stride) for i in range(stride)]
    for anchors in runs:
        assert list(anchors) == sorted(set(anchors))
        assert {0, frames - 1} <= set(anchors)
    for frame in range(1, frames - 1):
        assert sum(frame in anchors for anchors in runs) == 1


@given(frames=st.integers(3, 40), stride=st.integers(1, 8), residue=residues)
def test_interpolation(frames: int, stride: int, residue: int) -> None:
    stride = min(stride, frames)
    anchors = anchor_frames(frames, stride, residue % stride)
    left, right, weight = interpolation(anchors, frames)
    assert bool(((weight >= 0) & (weight < 1)).all())
    known = torch.tensor(anchors)
    for f in range(frames):
        assert (weight[f] == 0) == (f in anchors)
        assert anchors[left[f]] <= f <= anchors[right[f]]
        assert right[f] - left[f] in (0, 1)
    at = known[left] + weight * (known[right] - known[left])
    torch.testing.assert_close(at, torch.arange(frames, dtype=torch.float32))


@given(axis=layouts, dim=st.integers(0, 2), stride=strides, residue=residues)
def test_gather(axis: FrameAxis, dim: int, stride: int, residue: int) -> None:
    stride = min(stride, axis.frames)
    anchors = anchor_frames(axis.frames, stride, residue % stride)
    x, short = tensor_of(axis, dim), axis.at(len(anchors))
    index = torch.tensor(anchors)
    y = GATHER(x, dim, index, axis.outer, axis.inner, axis.before, axis.after)
    assert y.shape[dim] == short.size
    for o in range(axis.outer):
        for k, f in enumerate(anchors):
            for i in range(axis.inner):
                a, b = y.select(dim, entry(short, o, k, i)), x.select(dim, entry(axis, o, f, i))
                assert torch.equal(a, b)
    assert torch.equal(y.narrow(dim, 0, axis.before), x.narrow(dim, 0, axis.before))
    tail = slice(axis.size - axis.after, axis.size)
    assert torch.equal(y.movedim(dim, 0)[short.size - axis.after :], x.movedim(dim, 0)[tail])


def naive_fill(
    full: Tensor | None,
    kept: Tensor,
    dim: int,
    axis: FrameAxis,
    anchors: tuple[int, ...],
    fill: str,
) -> Tensor:
    short = axis.at(len(anchors))
    y = kept.movedim(dim, 0)
    x = None if full is None else full.movedim(dim, 0)
    rows: list[Tensor] = [y[e] for e in range(axis.before)]
    for o in range(axis.outer):
        for f in range(axis.frames):
            left = max(k for k, a in enumerate(anchors) if a <= f)
            right = min(left + 1, len(anchors) - 1) if anchors[left] != f else left
            w = 0.0
            if right != left:
                w = (f - anchors[left]) / (anchors[right] - anchors[left])
            for i in range(axis.inner):
                ends = [y[entry(short, o, k, i)] for k in (left, right)]
                if f in anchors:
                    rows.append(ends[0])
                    continue
                own = torch.zeros_like(ends[0]) if x is None else x[entry(axis, o, f, i)]
                if fill == "carry":
                    rows.append(own)
                    continue
                if fill == "residual" and x is not None:
                    ends = [
                        e - x[entry(axis, o, anchors[k], i)]
                        for e, k in zip(ends, (left, right), strict=True)
                    ]
                between = (1 - w) * ends[0] + w * ends[1]
                rows.append(between + own if fill == "residual" else between)
    rows += [y[short.size - axis.after + e] for e in range(axis.after)]
    return torch.stack(rows).movedim(0, dim)


@given(
    axis=layouts,
    dim=st.integers(0, 2),
    stride=strides,
    residue=residues,
    fill=st.sampled_from(FILLS),
    given_full=st.booleans(),
)
def test_fill(
    axis: FrameAxis, dim: int, stride: int, residue: int, fill: str, given_full: bool
) -> None:
    stride = min(stride, axis.frames)
    anchors = anchor_frames(axis.frames, stride, residue % stride)
    full = tensor_of(axis, dim) if given_full else None
    kept = tensor_of(axis.at(len(anchors)), dim)
    tables = (torch.tensor(anchors), *interpolation(anchors, axis.frames))
    where = (axis.outer, axis.inner, axis.before, axis.after)
    got = FILL(full, kept, dim, *tables, *where, fill)
    want = naive_fill(full, kept, dim, axis, anchors, fill)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    exact = got.index_select(dim, rows_of(axis, anchors))
    assert torch.equal(exact, kept), "anchors and text are handed on to the last bit"


def rows_of(axis: FrameAxis, frames: tuple[int, ...]) -> Tensor:
    video = [
        entry(axis, o, f, i) for o in range(axis.outer) for f in frames for i in range(axis.inner)
    ]
    end = axis.before + axis.video
    return torch.tensor([*range(axis.before), *video, *range(end, end + axis.after)])


@given(axis=layouts, stride=strides, residue=residues)
def test_residual_fill_is_exact_for_updates_linear_in_time(
    axis: FrameAxis, stride: int, residue: int
) -> None:
    """y = x + a + b * time at the anchors gives the same on every frame."""
    stride = min(stride, axis.frames)
    anchors = anchor_frames(axis.frames, stride, residue % stride)
    pure = FrameAxis(axis.frames, axis.outer, axis.inner)
    x = torch.randn(pure.size, 4, dtype=torch.float64)
    time = torch.arange(axis.frames).repeat_interleave(axis.inner).repeat(axis.outer)
    update = torch.randn(4, dtype=torch.float64) + time[:, None] * torch.randn(4)
    kept = (x + update)[rows_of(pure, anchors)]
    tables = (torch.tensor(anchors), *interpolation(anchors, axis.frames))
    got = FILL(x, kept, 0, *tables, pure.outer, pure.inner, 0, 0, "residual")
    torch.testing.assert_close(got, x + update, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", FILLS)
def test_fill_keeps_the_type(dtype: torch.dtype, fill: str) -> None:
    anchors = anchor_frames(7, 3, 1)
    tables = (torch.tensor(anchors), *interpolation(anchors, 7))
    full, kept = torch.randn(14, 3).to(dtype), torch.randn(2 * len(anchors), 3).to(dtype)
    got = FILL(full, kept, 0, *tables, 1, 2, 0, 0, fill)
    assert got.dtype == dtype
    wide = FILL(full.double(), kept.double(), 0, *tables, 1, 2, 0, 0, fill)
    torch.testing.assert_close(got, wide.to(dtype))


AXIS = FrameAxis(5, outer=2, inner=3, before=1, after=2)
ANCHORS = anchor_frames(5, 2, 1)


def test_registration() -> None:
    x, kept = torch.randn(2, AXIS.size, 3), torch.randn(2, AXIS.at(len(ANCHORS)).size, 3)
    tables = (torch.tensor(ANCHORS), *interpolation(ANCHORS, 5))
    where = (AXIS.outer, AXIS.inner, AXIS.before, AXIS.after)
    torch.library.opcheck(GATHER, (x, 1, tables[0], *where))
    for fill in FILLS:
        for full in (x, None):
            args = (full, kept, 1, *tables, *where, fill)
            torch.library.opcheck(FILL, args)


def test_compiles_whole() -> None:
    x, kept = torch.randn(2, AXIS.size, 3), torch.randn(2, AXIS.at(len(ANCHORS)).size, 3)
    tables = (torch.tensor(ANCHORS), *interpolation(ANCHORS, 5))
    where = (AXIS.outer, AXIS.inner, AXIS.before, AXIS.after)

    def call(x: Tensor, kept: Tensor) -> Tensor:
        y = GATHER(x, 1, tables[0], *where) + kept
        return FILL(x, y, 1, *tables, *where, "residual")

    with torch.no_grad():
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, kept), call(x, kept))
