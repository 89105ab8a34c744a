"""Runs of queries that read the same keys: one fused dense attention for each, forth and back.

Keys and values of a run are laid side by side: copying them costs little beside what is computed
on them, and no partial results are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Parts = list[Tensor | None]
"""Queries, keys, values and the mask, or what a run takes of them."""


@dataclass(frozen=True)
class Run:
    """Queries that read the same keys.

    Attributes:
        head: of the queries; None where all heads read alike.
        heads: how many of them there are.
        start: the first query.
        end: the last one, not included.
        ranges: (start, end) of the keys.
    """

    head: int | None
    heads: int
    start: int
    end: int
    ranges: Sequence[Sequence[int]]

    def seen(self, operands: Parts) -> Parts:
        """What it takes of the operands, which have four dimensions."""
        query, *over_keys = (None if x is None else self.own(x) for x in operands)
        assert query is not None
        key, value, mask = over_keys
        assert key is not None
        assert value is not None
        if mask is not None:
            mask = take(mask if mask.shape[-2] == 1 else self._queries(mask), -1, self.ranges)
        return [
            self._queries(query),
            take(key, -2, self.ranges),
            take(value, -2, self.ranges),
            mask,
        ]

    def add(self, place: int, total: Tensor, part: Tensor) -> None:
        """Add the gradient of what it takes of one operand to the gradient of all of it."""
        room, dim = self.own(total), -1 if place == 3 else -2
        if place == 0 or (place == 3 and room.shape[-2] > 1):
            room = self._queries(room)
        if place == 0 or room.shape[dim] == 1:
            room += part
            return
        begin = 0
        for start, end in self.ranges:
            room.narrow(dim, start, end - start).add_(part.narrow(dim, begin, end - start))
            begin += end - start

    def own(self, x: Tensor) -> Tensor:
        """The part of a tensor with as many heads as the queries, or fewer, of its head."""
        if self.head is None:
            return x
        return x.narrow(-3, self.head * x.shape[-3] // self.heads, 1)

    def _queries(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.end, :]


def runs_of(heads: int, rows: list[int], keys: list[list[list[list[int]]]]) -> Iterator[Run]:
    """The runs of a plan, head by head where its heads differ."""
    for head, groups in enumerate(keys):
        for start, end, ranges in _merged(rows, groups):
            yield Run(None if len(keys) == 1 else head, heads, start, end, ranges)


def _merged(
    starts: list[int], groups: list[list[list[int]]]
) -> list[tuple[int, int, list[list[int]]]]:
    """(start, end, key ranges) of each run of neighbouring groups that read the same keys."""
    result: list[tuple[int, int, list[list[int]]]] = []
    for start, end, padded in zip(starts[:-1], starts[1:], groups, strict=True):
        ranges = [r for r in padded if r[1] > r[0]]
        if result and result[-1][2] == ranges:
            start = result.pop()[0]
        result.append((start, end, ranges))
    return result


def take(x: Tensor, dim: int, ranges: Iterable[Sequence[int]]) -> Tensor:
    """Some ranges of a dimension side by side; a dimension of one entry is left to broadcast."""
    if x.shape[dim] == 1:
        return x
    pieces = [x.narrow(dim, start, end - start) for start, end in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def in_four(*given: Tensor | None) -> Parts:
    """The same with four dimensions at least, as the fused attentions want it."""
    return [None if x is None else x[(None,) * max(4 - x.ndim, 0)] for x in given]


def attended(parts: Parts, scale: float | None) -> Tensor:
    """The attention of what a run takes."""
    query, key, value, mask = parts
    assert query is not None
    assert key is not None
    assert value is not None
    shared = grouped(query, key)
    return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=shared)


def grouped(query: Tensor, key: Tensor) -> bool:
    """Whether several heads of the queries share one of the keys."""
    return query.ndim > 2 and query.shape[-3] != key.shape[-3]


def gradients(
    run: Run, operands: Parts, needed: Sequence[int], grad: Tensor, scale: float | None
) -> Sequence[Tensor]:
    """The gradients of what a run takes of the operands ``needed``, from that of the result."""
    seen = run.seen(operands)

    def attend(*wanted: Tensor) -> Tensor:
        held = dict(zip(needed, wanted, strict=True))
        return attended([held.get(i, x) for i, x in enumerate(seen)], scale)

    _, pull = torch.func.vjp(attend, *(seen[i] for i in needed))  # type: ignore[misc]
    found: Sequence[Tensor] = pull(run.own(grad)[..., run.start : run.end, :])
    return found
