"""Mask tables: a mask for every block of a model, with what it was measured on, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fisopt.checked import Checked, path_of
from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.files import write
from fisopt.nearest import did_you_mean
from fisopt.passes.tiling.masks import (
    FrameMask,
    FrameTable,
    RadialDecay,
    SlidingWindow,
    TileMask,
    frame_mask,
)
from fisopt.reading import check_readable, json_value, read_json

MASKS: dict[str, type[FrameMask]] = {
    cls.__name__: cls for cls in (TileMask, SlidingWindow, RadialDecay, FrameTable)
}

_ALL = f"Masks are {', '.join(MASKS)}"


@dataclass(frozen=True)
class MaskTable(metaclass=Checked):
    """A mask, or None for dense, for every video block of a model.

    Attributes:
        masks: (block path, mask) pairs, or a mapping; an int is the k of ``TileMask``.
        measured: what the table was measured on and the results, as JSON values. Two tables with
            equal masks are equal.
    """

    masks: tuple[tuple[str, FrameMask | int | None], ...] | Mapping[str, FrameMask | int | None]
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        pairs = self.masks.items() if isinstance(self.masks, Mapping) else self.masks
        try:
            masks = tuple((str(n), None if m is None else frame_mask(m)) for n, m in pairs)
        except OptionError as error:
            raise OptionTypeError(f"MaskTable: {error}") from error
        except (TypeError, ValueError) as error:
            raise OptionTypeError(
                "MaskTable: masks must be a mapping from block paths to masks, or pairs of them, "
                f"got {shown(self.masks)}"
            ) from error
        if not isinstance(self.measured, Mapping):
            raise OptionTypeError(
                f"MaskTable: measured must be a mapping, got {shown(self.measured)}"
            )
        object.__setattr__(self, "masks", masks)

    def __repr__(self) -> str:
        """Brief: a pass prints its options, and there are many blocks."""
        return f"<mask table of {len(self.masks)} blocks>"

    def items(self) -> tuple[tuple[str, FrameMask | None], ...]:
        """The (block path, mask) pairs."""
        return self.masks  # type: ignore[return-value]

    def plain(self) -> dict[str, Any]:
        """The table as JSON values."""
        said = {"masks": {n: as_json(m) for n, m in self.items()}, "measured": dict(self.measured)}
        values: dict[str, Any] = json.loads(json.dumps(said))
        return values

    @staticmethod
    def from_plain(held: Any) -> MaskTable:
        """The inverse of `plain`."""
        masks = tuple((n, from_json(m)) for n, m in held["masks"].items())
        return MaskTable(masks, held.get("measured", {}))

    def save(self, path: Path | str) -> Path:
        """Write the table as JSON; replace an existing file.

        Raises:
            OptionError: the table is larger than `load` accepts.
            FileError: the file cannot be written; an existing file stays unchanged.
        """
        path = path_of("MaskTable.save: path", path)
        text = json.dumps(self.plain(), indent=1) + "\n"
        check_readable(path, text, json_value, OptionError)
        return write(path, text)

    @staticmethod
    def load(path: Path | str) -> MaskTable:
        """Read a table.

        Raises:
            OptionError: the file is not a table.
            FileError: the file cannot be read.
        """
        path = path_of("MaskTable.load: path", path)
        try:
            return MaskTable.from_plain(read_json(path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OptionError(
                f"{path} is not a mask table ({type(error).__name__}: {error}); wanted what "
                "MaskTable.save or `fisopt search` writes"
            ) from error


def as_json(mask: FrameMask | None) -> Any:
    """A mask as JSON: k of a TileMask, null for dense, else its name and parameters.

    Raises:
        OptionTypeError: the mask is not one of those that come with fisopt.
    """
    if mask is None:
        return None
    if isinstance(mask, TileMask):
        return mask.k
    if type(mask) not in MASKS.values():
        raise OptionTypeError(f"{mask!r} cannot be written; masks that can are {', '.join(MASKS)}")
    return {"mask": type(mask).__name__, **{f.name: getattr(mask, f.name) for f in fields(mask)}}  # type: ignore[arg-type]


def from_json(value: Any) -> FrameMask | None:
    """The inverse of `as_json`.

    Raises:
        OptionError: there is no such mask, or it has no such option or value.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        options = {str(name): option for name, option in value.items()}
        name = options.pop("mask", None)
        if not isinstance(name, str) or name not in MASKS:
            raise OptionError(f"unknown mask {shown(name)}; {did_you_mean(name, MASKS)}{_ALL}")
        return MASKS[name](**options)
    return frame_mask(value)
