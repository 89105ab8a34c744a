"""Operators that a trace keeps whole unless they are written in terms of others.

The relations speak of the others: an attention written as two ``einsum`` is two products there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import torch

from fisopt.rewrite.ops.own_attention import own_attentions
from fisopt.rewrite.tools.tool import tools

aten = torch.ops.aten
_COMPOSITES = (
    aten.einsum.default,
    aten.tensordot.default,
    aten.outer.default,
    aten.diff.default,
    aten.cosine_similarity.default,
    aten.take_along_dim.default,
    aten.argsort.default,
    aten.argsort.stable,
    aten.std.dim,
    aten.std.default,
    aten.var.default,
    aten.var_mean.dim,
    aten.var_mean.default,
    aten.std_mean.dim,
    aten.std_mean.default,
    aten.where.Scalar,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.avg_pool1d.default,
    aten.adaptive_avg_pool1d.default,
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What is written out, by operator: composites, declared attentions, and those of tools."""
    theirs = (tool.composites().items() for tool in tools())
    return {**_composites(), **own_attentions(), **dict(chain.from_iterable(theirs))}


@cache
def _composites() -> dict[Any, Callable[..., Any]]:
    """Torch's own definition of each, where it has one.

    A copy into a tensor has none, and no gradient either.
    """
    every = torch.export.default_decompositions()
    return {aten.copy.default: _copy, **{operator: every[operator] for operator in _COMPOSITES}}


def _copy(place: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What a tensor holds where another was copied into it."""
    held = source.to(device=place.device, dtype=place.dtype)
    return held if held.shape == place.shape else held.expand(place.shape)
