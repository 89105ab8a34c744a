"""Readings: what the inputs of a call may say of the token grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fisopt.errors import InputError
from fisopt.models.family import Config
from fisopt.spec import Grid

LAYOUTS = ("BCFHW", "BFCHW", "BFHWC")
"""Orders of the dimensions of latents that models of diffusers take."""
NUMBERS = ("num_frames", "height", "width")
_PATCHES: tuple[Grid, ...] = ((1, 2, 2), (1, 1, 1), (2, 2, 2), (1, 4, 4))


@dataclass(frozen=True)
class Sizes:
    """The grid is in the sizes of a tensor of latents.

    Attributes:
        name: the argument, the tensor or a list that holds it alone.
        layout: the order of its dimensions.
        patch: latent cells per token.
    """

    name: str
    layout: str
    patch: Grid

    def __call__(self, inputs: Mapping[str, Any]) -> Grid:
        """Return (F, H, W) in tokens for a call's arguments."""
        value = _alone(inputs.get(self.name))
        if not isinstance(value, Tensor) or value.ndim != len(self.layout):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"{self.name}: got {got}, wanted a tensor of rank {len(self.layout)}, "
                f"[{', '.join(self.layout)}]"
            )
        return _in_patches([value.shape[self.layout.index(axis)] for axis in "FHW"], self.patch)

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(self.layout)}] in patches of {_text(self.patch)}"


@dataclass(frozen=True)
class Numbers:
    """Latents come as tokens, and their size as whole numbers.

    Attributes:
        names: the arguments, of frames, rows and columns.
        patch: latent cells per token.
    """

    names: tuple[str, str, str]
    patch: Grid

    def __call__(self, inputs: Mapping[str, Any]) -> Grid:
        """Return (F, H, W) in tokens for a call's arguments."""
        size = [inputs.get(name) for name in self.names]
        if not all(isinstance(cells, int) for cells in size):
            raise InputError(f"{', '.join(self.names)}: got {size}, wanted three whole numbers")
        return _in_patches(size, self.patch)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"the numbers {', '.join(self.names)} in patches of {_text(self.patch)}"


Reading = Sizes | Numbers


def readings(inputs: Mapping[str, Any], config: Config) -> Iterator[Reading]:
    """Yield how the inputs may be read, every layout and patch that divides the sizes."""
    patches = _patches(config)
    if all(isinstance(inputs.get(name), int) for name in NUMBERS):
        yield from (Numbers(NUMBERS, patch) for patch in patches)
    for name, given in inputs.items():
        value = _alone(given)
        if isinstance(value, Tensor) and value.ndim == 5 and value.is_floating_point():
            for layout in LAYOUTS:
                sizes = [value.shape[layout.index(axis)] for axis in "FHW"]
                for patch in patches:
                    if all(size % cut == 0 for size, cut in zip(sizes, patch, strict=True)):
                        yield Sizes(name, layout, patch)


def _patches(config: Config) -> tuple[Grid, ...]:
    """Patches that the config names; where it names none, the usual ones."""
    found = (config.get(name) for name in ("patch_size", "latent_patch_size"))
    patch = next((value for value in found if value is not None), None)
    frames = config.get("patch_size_t") or 1
    if isinstance(patch, int):
        return ((frames, patch, patch),)
    if isinstance(patch, (tuple, list)) and len(patch) == 3:
        return ((patch[0], patch[1], patch[2]),)
    return _PATCHES


def _alone(value: Any) -> Any:
    """What a list holds alone; any other value as it is."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _in_patches(size: list[int], patch: Grid) -> Grid:
    frames, rows, columns = (cells // cut for cells, cut in zip(size, patch, strict=True))
    return (frames, rows, columns)


def _text(patch: Grid) -> str:
    return "x".join(map(str, patch))
