"""Selections: which blocks, or which steps, written as Python's slices are: "1:-2", "0,3,-1"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fisopt.checked import is_int
from fisopt.errors import OptionError, shown

ALL = ":"
Selected = str | int | Sequence[int]
"""Numbers and slices behind commas, or numbers; negative ones count from the end."""

_ITEM = re.compile(r"-?\d{1,18}|(-?\d{1,18})?:(-?\d{1,18})?(:0*[1-9]\d{0,17})?", re.ASCII)
_MANY = 1 << 62


def selection(where: str, value: Selected) -> str:
    """A selection as text without spaces.

    Raises:
        OptionError: it is none.
    """
    if isinstance(value, str):
        items = "".join(value.split()).split(",")
    else:
        numbers = value if isinstance(value, (tuple, list)) else [value]
        items = [str(n) if is_int(n, -_MANY) else "" for n in numbers]
    if not items or not all(map(_ITEM.fullmatch, items)):
        raise OptionError(
            f"{where} must be numbers and slices such as ':', '1:-2' or '0,3,-1', or a list of "
            f"ints, got {shown(value)}"
        )
    return ",".join(items)


def outside(selected: str, count: int) -> int | None:
    """The first number in a selection that does not exist among so many, None if all do."""
    for first, slices in _items(selected):
        for bound in (first, slices.stop) if slices else (first,):
            if bound is not None and not -count <= bound <= count - (slices is None):
                return bound
    return None


def among(selected: str, index: int, count: int | None) -> bool:
    """Whether one of so many, or of nobody knows how many, is selected."""
    for first, slices in _items(selected):
        if slices:
            if index in range(*slices.indices(_MANY if count is None else count)):
                return True
        elif first is not None and index == first + (count or 0 if first < 0 else 0):
            return True
    return False


def from_the_end(selected: str) -> bool:
    """Whether it can only be told where it is known how many there are."""
    return "-" in selected


def _items(selected: str) -> Iterator[tuple[int | None, slice | None]]:
    """The first number of every item, and the slice that it begins."""
    for item in selected.split(","):
        numbers = [int(part) if part else None for part in item.split(":")]
        yield numbers[0], slice(*numbers) if ":" in item else None
