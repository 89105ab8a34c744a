"""The operators of torch that keep every entry of their operand, by what they do to its place."""

from __future__ import annotations

import torch

aten = torch.ops.aten
CUTS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
)
"""Other sizes over the same entries in the same order."""
ORDERS = (aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default)
"""Another order of the dimensions."""
ONES = (aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
"""Dimensions of size one come or go."""
COPIES = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten._to_copy.default,
)
"""The same entries in the same places, perhaps in another type."""
PLACES = frozenset([*CUTS, *ORDERS, *ONES])
"""Every entry is kept, once, under another index."""
WHOLE = PLACES | frozenset(COPIES)
"""Every entry is kept, once."""
BY_SIZES = frozenset(
    [
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.expand.default,
    ]
)
"""Those that are told the sizes of their result; an expansion keeps entries more than once."""
