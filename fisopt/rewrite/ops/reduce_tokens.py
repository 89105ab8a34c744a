"""reduce_tokens: keep some entries of a sequence, each leading index (batch, head) its own.

Either the kept entries as they are, or, given the origin of every entry, each kept entry as the
mean of all entries that it stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.relations.table import Relation, shape


def along(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """An index [..., M] over the leading dimensions of x, spread to gather along one of x."""
    lead = index.ndim - 1
    sizes = [*index.shape[:-1], *[1] * (x.ndim - lead)]
    sizes[dim] = index.shape[-1]
    spread = list(x.shape)
    spread[dim] = index.shape[-1]
    return index.to(torch.int64).reshape(sizes).expand(spread)


def _axes(node: fx.Node) -> Axes:
    """Axis rule: what is left of a reduced dimension is no frame."""
    x, dim = node.args[0], node.args[3]
    assert isinstance(x, fx.Node)
    return tuple(None if d == dim else axis for d, axis in enumerate(axes_of(x)))


def by_lead(x: fx.Node, indices: list[fx.Node], dim: int) -> Relation:
    """Entries along a dimension are read by indices, each leading index for itself."""
    result = Relation(mixed=[(x, dim)])
    for d in range(len(shape(x))):
        if d != dim:
            result.link(x, d, d)
    for index in indices:
        lead = len(shape(index)) - 1
        result.mixed.append((index, lead))
        for d in range(lead):
            result.link(index, d, d)
    return result


def _relation(node: fx.Node) -> Relation:
    x, *rest = (n for n in node.args[:3] if isinstance(n, fx.Node))
    dim = node.args[3]
    assert isinstance(dim, int)
    return by_lead(x, rest, dim)


def _traffic(x: Any, kept: Any, origin: Any, dim: int) -> float:
    """Every row that stays is read and written; for a mean all are read, and added to sums."""
    rows = x.numel() // x.shape[dim] * kept.shape[-1]
    moved = 2 * rows * x.element_size()
    if origin is None:
        return float(moved)
    wide = max(4, x.element_size())
    return float(moved + x.numel() * (x.element_size() + 2 * wide) + 2 * rows * wide)


@operator("fisopt::reduce_tokens", axes=_axes, relation=_relation, selects="x", traffic=_traffic)
def reduce_tokens(x: Tensor, kept: Tensor, origin: Tensor | None, dim: int) -> Tensor:
    """Reduce in plain torch.

    Shapes: x with L leading dimensions that ``kept`` shares and S entries along ``dim`` >= L;
        kept [..., M] int32, positions in [0, S); origin [..., S] int32, positions in [0, M), or
        None.
    Returns: x with M entries along ``dim``, in x's dtype; means are computed in float32 at least.
    """
    rows = x.gather(dim, along(x, kept, dim))
    if origin is None:
        return rows
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = torch.zeros_like(rows, dtype=wide).scatter_add(dim, along(x, origin, dim), x.to(wide))
    ones = torch.ones_like(origin, dtype=wide)
    counts = torch.zeros_like(kept, dtype=wide).scatter_add(-1, origin.to(torch.int64), ones)
    sizes = [*counts.shape[:-1], *[1] * (x.ndim - counts.ndim + 1)]
    sizes[dim] = counts.shape[-1]
    return (sums / counts.reshape(sizes)).to(x.dtype)
