"""The inverse of a match."""

from __future__ import annotations

import torch

from fisopt.codegen.kernels.inverse import inverse


def test_every_entry_stands_with_what_it_restores_from() -> None:
    origin = torch.randint(7, (2, 3, 20), dtype=torch.int32)
    order, owner, starts = inverse(origin, 9)
    assert (order.shape, owner.shape, starts.shape) == ((6, 20), (6, 20), (6, 10))
    for row, entries, owners, begin in zip(
        origin.flatten(0, 1).tolist(), order.tolist(), owner.tolist(), starts.tolist(), strict=True
    ):
        for kept in range(9):
            part = slice(begin[kept], begin[kept + 1])
            assert entries[part] == [e for e in range(20) if row[e] == kept]
            assert set(owners[part]) <= {kept}
