"""Tile-sparse attentions whose key ranges are no frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from hypothesis import strategies as st

from fisopt.rewrite.axes import FrameAxis
from tests.tiles import MASKS, Problem, problem


@st.composite
def any_plan(
    draw: st.DrawFn,
    width: int,
    masks: Sequence[str] = MASKS,
    tokens: int = 100,
    edges: Sequence[int] = (0, 32, 64),
) -> Problem:
    """Key ranges anywhere: neighbouring, empty, none for a group, often from edge to edge."""
    axes = [FrameAxis(1, inner=draw(st.integers(1, tokens))) for _ in range(2)]
    posed = problem(
        torch.ones(1, 1, dtype=torch.bool),
        *axes,
        dtype=draw(st.sampled_from((torch.bfloat16, torch.float16))),
        mask=draw(st.sampled_from(masks)),
        shared=draw(st.sampled_from([1, 2])),
        batch=1,
        width=width,
        wider=0,
    )
    heads, groups, ranges = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)))
    queries, keys = (axis.size for axis in axes)
    cuts = draw(st.lists(st.integers(0, queries), min_size=groups - 1, max_size=groups - 1))
    edge = st.one_of(st.integers(0, keys), st.sampled_from([n for n in edges if n <= keys]))
    drawn = [
        sorted(draw(st.lists(edge, min_size=2 * ranges, max_size=2 * ranges)))
        for _ in range(heads * groups)
    ]
    rows = torch.tensor([0, *sorted(cuts), queries], dtype=torch.int32)
    table = torch.tensor(drawn, dtype=torch.int32).view(heads, groups, ranges, 2)
    kept = torch.zeros(heads, queries, keys, dtype=torch.bool)
    for head, group in product(range(heads), range(groups)):
        for start, end in table[head, group].tolist():
            kept[head, rows[group] : rows[group + 1], start:end] = True
    return replace(posed, kept=kept, plan=(rows, table, int(kept.sum())))
