"""Chosen kernels as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fisopt.codegen.kernel_options import KernelOptions
from fisopt.errors import OptionError, RecipeError, shown

_KEYS = ("linear", "attention")


def encode_kernels(kernels: KernelOptions) -> dict[str, str]:
    """What was chosen, by option; empty where nothing was.

    Raises:
        RecipeError: attention is a function.
    """
    if callable(kernels.attention):
        raise RecipeError(
            f"attention={shown(kernels.attention)} is a function, which a recipe cannot hold; "
            "leave it out, and pass it together with the recipe"
        )
    chosen = {key: getattr(kernels, key) for key in _KEYS}
    return {key: value for key, value in chosen.items() if value is not None}


def decode_kernels(said: Any, where: str) -> KernelOptions:
    """The inverse of `encode_kernels`.

    Raises:
        RecipeError: an option or a value is not known here.
    """
    if not isinstance(said, Mapping) or not set(said) <= set(_KEYS):
        raise RecipeError(f"{where}: got kernels {shown(said)}, wanted them by {', '.join(_KEYS)}")
    try:
        return KernelOptions(**said)
    except OptionError as error:
        raise RecipeError(f"{where}: kernels: {error}") from error
