"""The lists that a tile-sparse attention walks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fisopt.codegen.kernels.work_list import key_blocks, lists_of, work_list
from fisopt.rewrite.axes import FrameAxis
from tests.tiles import problem


def test_work_list_has_every_query_once_and_long_rows_first() -> None:
    axis = FrameAxis(5, inner=37, before=3, after=70)
    table = torch.rand(2, 5, 5) < 0.5
    table[..., 0] = True
    posed = problem(table, axis)
    rows, keys = posed.plan[:2]
    for block in (16, 64):
        work = work_list(rows, keys, axis.size, block)
        assert work.shape[:2] == (2, axis.size // block + 7)
        for head, blocks in enumerate(work.tolist()):
            used = [b for b in blocks if b[0] >= 0]
            assert blocks[: len(used)] == used
            seen = [
                q for g, first in used for q in range(first, min(first + block, int(rows[g + 1])))
            ]
            assert sorted(seen) == list(range(axis.size))
            assert all(int(rows[g]) <= first < int(rows[g + 1]) for g, first in used)
            load = [int((keys[head, g, :, 1] - keys[head, g, :, 0]).sum()) for g, _ in used]
            assert load == sorted(load, reverse=True)


@given(data=st.data())
def test_key_blocks_are_those_of_a_loop_over_ranges(data: st.DataObject) -> None:
    """Any ranges that do not overlap, neighbouring, empty and none at all among them."""
    tokens, block = data.draw(st.integers(1, 90)), data.draw(st.sampled_from([4, 16, 32]))
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)))
    edges = st.lists(st.integers(0, tokens), min_size=2 * shape[2], max_size=2 * shape[2])
    drawn = [sorted(data.draw(edges)) for _ in range(shape[0] * shape[1])]
    keys = torch.tensor(drawn, dtype=torch.int32).reshape(*shape, 2)
    made = key_blocks(keys, tokens, block)
    assert made.shape == (*shape[:2], 1 + tokens // block + shape[2], 2)
    assert made.dtype == torch.int32
    for ranges, (size, *blocks) in zip(
        keys.flatten(0, 1).tolist(), made.flatten(0, 1).tolist(), strict=True
    ):
        cut = [(n, min(n + block, end)) for start, end in ranges for n in range(start, end, block)]
        cut.sort(key=lambda b: b[1] - b[0] < block)
        assert size == [sum(b - a == block for a, b in cut), len(cut)]
        assert [tuple(b) for b in blocks[: len(cut)]] == cut


def test_lists_are_made_once_until_their_plan_changes() -> None:
    rows, keys = problem(torch.eye(3, dtype=torch.bool), FrameAxis(3, inner=10, after=4)).plan[:2]
    first = lists_of(rows, keys, (34, 34), (16, 8))
    assert lists_of(rows, keys, (34, 34), (16, 8)) is first
    assert lists_of(rows, keys, (34, 34), (32, 8))[0].shape != first[0].shape
    assert lists_of(rows, keys, (34, 34), (16, 4))[1].shape != first[1].shape
    keys[..., 1] = keys[..., 0]
    work, blocks = lists_of(rows, keys, (34, 34), (16, 8))
    assert torch.equal(work, work_list(rows, keys, 34, 16))
    assert not torch.equal(work, first[0])
    assert not blocks[:, :, 0].any()
