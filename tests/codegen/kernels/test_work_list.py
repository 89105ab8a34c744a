"""The work list of a tile-sparse attention."""

from __future__ import annotations

import torch

from fisopt.codegen.kernels.work_list import work_list, work_list_of
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


def test_a_list_is_made_once_until_its_plan_changes() -> None:
    rows, keys = problem(torch.eye(3, dtype=torch.bool), FrameAxis(3, inner=10, after=4)).plan[:2]
    first = work_list_of(rows, keys, 34, 16)
    assert work_list_of(rows, keys, 34, 16) is first
    assert work_list_of(rows, keys, 34, 32).shape != first.shape
    keys[..., 1] = keys[..., 0]
    changed = work_list_of(rows, keys, 34, 16)
    assert torch.equal(changed, work_list(rows, keys, 34, 16))
    assert not torch.equal(changed, first)
