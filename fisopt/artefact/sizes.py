"""Sizes: which dimensions of a call follow frames, height and width, and calls of other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fisopt.artefact.manifest import SIZES, Manifest
from fisopt.errors import InputError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs

Product = tuple[int, tuple[str, ...]]
"""A factor and the sizes that it is multiplied by: ``(2, ("height",))``."""
Roles = dict[int, dict[int, Product]]
"""Leaf of a call -> dimension -> the product that the dimension is."""


def roles_of(program: Program) -> Roles:
    """Find the dimensions of a Program's inputs that follow its token grid.

    A dimension that carries frames has one entry a token, or is followed by the rows and columns
    of the grid, each with as many entries a token as the other.  Where tokens are all that the
    inputs tell, rows and columns are taken as they are.  Where a size is no multiple of the
    frames, no size can be left open.
    """
    roles, dims = Roles(), program.source.frame_dims
    if not all(growth.exact for places in dims.values() for growth in places):
        return roles
    for leaf, places in dims.items():
        tensor = program.inputs.leaves[leaf]
        if not isinstance(tensor, torch.Tensor):
            continue
        found = roles.setdefault(leaf, {})
        for growth in places:
            if growth.tokens:
                found[growth.dim] = (growth.per_frame, SIZES)
                continue
            found[growth.dim] = (growth.per_frame, ("frames",))
            if growth.plane is not None:
                h, w = growth.plane
                found |= {h: (growth.scale, ("height",)), w: (growth.scale, ("width",))}
    if all(names == SIZES for places in roles.values() for _, names in places.values()):
        frames: Product = (program.layout.tokens_per_frame, ("frames",))
        return {leaf: dict.fromkeys(places, frames) for leaf, places in roles.items()}
    return roles


def value_of(product: Product, grid: TokenLayout) -> int:
    """What a product is on a token grid."""
    sizes: list[int] = [getattr(grid, name) for name in product[1]]
    return math.prod(sizes, start=product[0])


def product_text(product: Product) -> str:
    """A product as text: ``2*height``."""
    factor = [str(product[0])] if product[0] != 1 else []
    return "*".join([*factor, *product[1]]) or "1"


def product_from(text: str) -> Product:
    """The inverse of `product_text`."""
    parts = text.split("*")
    numbers = [int(part) for part in parts if part.isdigit()]
    return math.prod(numbers), tuple(part for part in parts if not part.isdigit())


def resized(inputs: Inputs, roles: Roles, grid: TokenLayout) -> Inputs:
    """A call of the same form on another token grid; values of what changes are zeros."""
    leaves = list(inputs.leaves)
    for leaf, places in roles.items():
        sizes = list(leaves[leaf].shape)
        for dim, product in places.items():
            sizes[dim] = value_of(product, grid)
        if tuple(sizes) != tuple(leaves[leaf].shape):
            leaves[leaf] = leaves[leaf].new_zeros(sizes)
    return inputs.replaced(leaves)


def grown(grid: TokenLayout, steps: Mapping[str, int]) -> TokenLayout:
    """A token grid with some sizes larger."""
    return replace(grid, **{name: getattr(grid, name) + by for name, by in steps.items()})


def check_sizes(manifest: Manifest, values: Sequence[Tensor]) -> None:
    """Refuse tensors of sizes or types that an artefact does not take.

    Raises:
        InputError: a tensor is of another rank, type, or size.
    """
    known: dict[str, int] = {}
    pairs = list(zip(manifest.call.tensors, values, strict=True))
    for info, value in pairs:
        for want, size in zip(info.shape, value.shape, strict=False):
            if isinstance(want, str):
                factor, names = product_from(want)
                if len(names) == 1:
                    known.setdefault(names[0], size // factor)
    for info, value in pairs:
        wanted = [
            math.prod((known.get(n, 0) for n in names), start=factor)
            for factor, names in (
                product_from(want) if isinstance(want, str) else (want, ()) for want in info.shape
            )
        ]
        kind = str(value.dtype).removeprefix("torch.")
        if list(value.shape) != wanted or kind != info.dtype:
            fixed = "; ".join(f"{n} is fixed: {why}" for n, why in manifest.fixed_sizes.items())
            raise InputError(
                f"artefact of {manifest.model['class']}: got {info.name} {list(value.shape)} "
                f"{kind}, wanted [{', '.join(map(str, info.shape))}] {info.dtype}"
                + (f" ({fixed})" if fixed else "")
                + "; export it for this shape"
            )
