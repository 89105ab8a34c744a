"""What a caller or an adapter says about a model: where its blocks are, what its grid is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fisopt.checked import Checked
from fisopt.errors import FisoptError, InputError, OptionTypeError, shown

Grid = tuple[int, int, int]
GridOf = Callable[[Mapping[str, Any]], Grid]


@dataclass(frozen=True)
class ModelSpec(metaclass=Checked):
    """Where a model's repeated video blocks are and how its tokens are laid out.

    `capture` finds by itself where the text sits and which arguments carry video tokens.

    Attributes:
        blocks: Glob patterns over module paths, one path component per ``*``
            (``"layers.*"``); the modules that match are the video blocks.
        grid: The token grid (latent frames F, rows H, columns W) of the example inputs, or a
            function from the keyword arguments of one forward call to that triple.
        prepare: For a model that cannot be traced at every shape (control flow that depends on
            data, tables for one size), a function that returns an equivalent module of tensor
            operations. That module shares the model's parameters, under the same paths.
        resized: For a model whose inputs grow with the number of frames in a way that capture
            cannot infer, a function from the keyword arguments of one forward call and a number of
            latent frames to the arguments for that number. Only shapes and plain values matter.
        images: The model makes images: the grid is (rows, 1, columns), with rows instead of frames.
            Passes over frames raise; passes over tokens and tiles work.
    """

    blocks: tuple[str, ...]
    grid: Grid | GridOf
    prepare: Callable[[Any], Any] | None = None
    resized: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None
    images: bool = False

    def __post_init__(self) -> None:
        """Refuse wrong types; a pattern on its own would be read as one pattern a letter."""
        if isinstance(self.blocks, str):
            raise OptionTypeError(
                f"ModelSpec: blocks must be a tuple of patterns, got {self.blocks!r}; "
                f"write blocks=({self.blocks!r},)"
            )
        if not isinstance(self.blocks, (tuple, list)) or any(
            not isinstance(pattern, str) for pattern in self.blocks
        ):
            raise OptionTypeError(
                f"ModelSpec: blocks must be a tuple of patterns, got {shown(self.blocks)}"
            )
        if not isinstance(self.grid, (tuple, list)) and not callable(self.grid):
            raise OptionTypeError(
                "ModelSpec: grid must be (frames, rows, columns) or a function of the inputs that "
                f"returns it, got {shown(self.grid)}"
            )
        if self.prepare is not None and not callable(self.prepare):
            raise OptionTypeError(f"ModelSpec: prepare must be a function, got {self.prepare!r}")

    def grid_of(self, inputs: Mapping[str, Any]) -> Grid:
        """Return (F, H, W) in tokens for one forward call's keyword arguments.

        Raises:
            InputError: the function `grid` fails on these arguments.
        """
        if not callable(self.grid):
            return self.grid
        try:
            return self.grid(inputs)
        except FisoptError:
            raise
        except Exception as error:
            raise InputError(
                f"the grid function of the ModelSpec fails on {sorted(inputs)}: "
                f"{type(error).__name__}: {error}; wanted it to take the arguments of any call"
            ) from error


SpecOf = Callable[[Any, Mapping[str, Any]], tuple[ModelSpec, str]]
"""Finds the spec of a model from the arguments of its first call; the text says how, in a line."""
