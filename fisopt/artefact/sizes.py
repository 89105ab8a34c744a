"""Open sizes: the sizes of an artefact's tensors as expressions in frames, height and width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fisopt.artefact.manifest import Manifest
from fisopt.errors import InputError


def check_sizes(manifest: Manifest, values: Sequence[Tensor]) -> None:
    """Refuse tensors of other sizes or types than an artefact takes.

    Raises:
        InputError: a tensor is of another rank, type, or fixed size.
    """
    where = f"artefact of {manifest.model['class']}"
    for info, value in zip(manifest.call.tensors, values, strict=True):
        shape, kind = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        fits = len(shape) == len(info.shape) and all(
            isinstance(want, str) or size == want
            for size, want in zip(shape, info.shape, strict=False)
        )
        if not fits or kind != info.dtype:
            fixed = "; ".join(f"{n} is fixed ({why})" for n, why in manifest.fixed_sizes.items())
            raise InputError(
                f"{where}: got {info.name} {list(shape)} {kind}, wanted "
                f"[{', '.join(map(str, info.shape))}] {info.dtype}"
                + (f"; {fixed}" if fixed else "")
                + ": export it for this shape"
            )
