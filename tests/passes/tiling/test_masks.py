"""Frame masks: which tiles each keeps, for any number of frames."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisopt.passes.tiling.masks import (
    FrameMask,
    FrameTable,
    RadialDecay,
    SlidingWindow,
    TileMask,
    frame_mask,
)

counts = st.integers(1, 40)


def picture(mask: FrameMask, frames: int) -> list[str]:
    return ["".join(".#"[int(kept)] for kept in row) for row in mask.table(frames)]


def test_pictures() -> None:
    assert picture(TileMask(2), 5) == ["#####", "##.#.", "#.##.", "#####", "#..##"]
    assert picture(SlidingWindow(1), 4) == ["##..", "###.", ".###", "..##"]
    assert picture(RadialDecay(1), 10)[0] == "###.#...#."
    assert picture(RadialDecay(2), 18)[0] == "#####.#.#...#...#."
    assert picture(FrameTable([[True, False], [True, True]]), 2) == ["#.", "##"]


@given(frames=counts, data=st.data())
def test_tile_mask_is_its_definition(frames: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, frames))
    stride = -(-frames // k)
    seen = {j for j in range(frames) if j % stride == 0}
    table = TileMask(k).table(frames)
    for i in range(frames):
        for j in range(frames):
            assert bool(table[i, j]) == (i == j or i in seen or j in seen)
    left = len(seen)
    assert int((~table).sum()) == (frames - left) * (frames - left - 1)
    assert left <= k
    assert left == k or frames % k
    assert TileMask(k).at(frames) == f"TileMask(k={k}) ({left} of {frames} frames global)"


def test_three_k_may_be_one_mask() -> None:
    """Of 21 frames, k = 8, 9 and 10 make every third one global."""
    for k in (8, 9, 10):
        assert torch.equal(TileMask(k).table(21), TileMask(7).table(21))
        assert TileMask(k).at(21) == f"TileMask(k={k}) (7 of 21 frames global)"
    assert SlidingWindow(2).at(21) == "SlidingWindow(radius=2)"


@given(frames=counts)
def test_tile_mask_of_every_frame_is_dense(frames: int) -> None:
    assert bool(TileMask(frames).table(frames).all())


@given(frames=counts, near=st.integers(1, 5))
def test_radial_decay_thins_with_distance(frames: int, near: int) -> None:
    table = RadialDecay(near).table(frames)
    assert torch.equal(table, table.T)
    assert bool(table.diagonal().all())
    first = table[0]
    start = near
    while 2 * start <= frames:
        assert int(first[start : 2 * start].sum()) == near
        start *= 2


@given(frames=counts, radius=st.integers(0, 5))
def test_sliding_window_keeps_a_band(frames: int, radius: int) -> None:
    want = sum(abs(i - j) <= radius for i in range(frames) for j in range(frames))
    assert int(SlidingWindow(radius).table(frames).sum()) == want


def test_masks_are_values() -> None:
    per_head = torch.eye(3, dtype=torch.bool).repeat(2, 1, 1)
    masks = [TileMask(2), SlidingWindow(1), RadialDecay(2), FrameTable(per_head)]
    for mask in masks:
        twin = type(mask)(**vars(mask))
        assert twin == mask
        assert hash(twin) == hash(mask)
        assert twin.label == mask.label
        assert mask.label.isidentifier()
    assert len({mask.label for mask in masks}) == len(masks)
    assert torch.equal(masks[-1].table(3), per_head)
    assert FrameTable(per_head).label != FrameTable(~per_head).label


@dataclass(frozen=True)
class Drift(FrameMask):
    """A mask of a user, with a number of any kind."""

    by: float

    def table(self, frames: int) -> torch.Tensor:
        return SlidingWindow(int(abs(self.by))).table(frames)


def test_labels_tell_numbers_apart() -> None:
    labels = [Drift(by).label for by in (1, -1, 1.5, 15, 1e-5)]
    assert len(set(labels)) == len(labels)
    assert all(label.isidentifier() for label in labels)


def test_an_int_is_the_k_of_a_tile_mask() -> None:
    assert frame_mask(3) == TileMask(3)
    assert frame_mask(SlidingWindow(1)) == SlidingWindow(1)
    for value in (True, "2", 2.0, None):
        with pytest.raises(TypeError, match="an int k or a FrameMask"):
            frame_mask(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TileMask(0), "k must be an int of at least 1, got 0"),
        (lambda: TileMask(True), "got True"),
        (lambda: TileMask(6).table(5), "k=6 is more than the 5 frames; use 1 to 5"),
        (lambda: SlidingWindow(-1), "radius must be an int >= 0"),
        (lambda: RadialDecay(0), "near must be an int of at least 1"),
        (lambda: FrameTable([[1, 0]]), r"got \[1, 2\]"),
        (lambda: FrameTable([[1, 0], [1]]), "rows differ in length"),
        (lambda: FrameTable([]), "must be"),
        (lambda: FrameTable([[1, 0], [0, 1]]).table(3), "it has 2 frames, the attention has 3"),
    ],
)
def test_bad_masks(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
