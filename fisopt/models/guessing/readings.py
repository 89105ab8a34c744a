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
UNBATCHED = ("CFHW", "FCHW")
"""The same of one clip, as the entries of a list are."""
NUMBERS = ("num_frames", "height", "width")
_PATCHES: tuple[Grid, ...] = ((1, 2, 2), (1, 1, 1), (2, 2, 2), (1, 4, 4))


@dataclass(frozen=True)
class Sizes:
    """The grid is in the sizes of a tensor of latents.

    Attributes:
        name: the argument, a tensor or a list: of one tensor, or of clips without a batch; or the
            names and fields that lead to it in dicts and named tuples, with dots between them.
        layout: the order of its dimensions.
        patch: latent cells per token.
    """

    name: str
    layout: str
    patch: Grid

    def __call__(self, inputs: Mapping[str, Any]) -> Grid:
        """Return (F, H, W) in tokens for a call's arguments."""
        value = _alone(_inside(inputs).get(self.name))
        if not isinstance(value, Tensor) or value.ndim != len(self.layout):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"{self.name}: got {got}, wanted a tensor of rank {len(self.layout)}, "
                f"[{', '.join(self.layout)}]"
            )
        return _in_patches([value.shape[self.layout.index(axis)] for axis in "FHW"], self.patch)

    def clips(self, inputs: Mapping[str, Any]) -> int | None:
        """How many clips there are, where they are the entries of a list."""
        return len(_inside(inputs)[self.name]) if self.layout in UNBATCHED else None

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

    def clips(self, inputs: Mapping[str, Any]) -> int | None:
        """None: tokens have a batch."""
        return None

    def __str__(self) -> str:
        return f"the numbers {', '.join(self.names)} in patches of {_text(self.patch)}"


Reading = Sizes | Numbers


def readings(inputs: Mapping[str, Any], config: Config) -> Iterator[Reading]:
    """Yield how the inputs may be read, every layout and patch that divides the sizes."""
    patches = _patches(config)
    if all(isinstance(inputs.get(name), int) for name in NUMBERS):
        yield from (Numbers(NUMBERS, patch) for patch in patches)
    for name, given in _inside(inputs).items():
        value = _alone(given)
        if isinstance(value, Tensor) and value.is_floating_point():
            rank = value.ndim
            clip = rank == 4 and value is not given
            for layout in LAYOUTS if rank == 5 else UNBATCHED if clip else ():
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
    """What a list holds alone, or a clip of those of one size; any other value as it is."""
    if not isinstance(value, (list, tuple)) or not value:
        return value
    clips = {tuple(x.shape) if isinstance(x, Tensor) and x.ndim == 4 else None for x in value}
    return value[0] if len(value) == 1 or (len(clips) == 1 and None not in clips) else value


def _inside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, and what is in dicts and named tuples by the path that leads there."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        fields = value._asdict() if hasattr(value, "_asdict") else value
        if isinstance(fields, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in _inside(fields).items()}
        else:
            found[name] = value
    return found


def _in_patches(size: list[int], patch: Grid) -> Grid:
    frames, rows, columns = (cells // cut for cells, cut in zip(size, patch, strict=True))
    return (frames, rows, columns)


def _text(patch: Grid) -> str:
    return "x".join(map(str, patch))
