"""Selections: which blocks, or which steps, written as Python's slices are: "1:-2", "0,3,-1".

A bound of a slice may be a share of how many there are: ":25%" is the first quarter, at least half
of one rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fisopt.checked import is_int
from fisopt.errors import OptionError, shown

ALL = ":"
Selected = str | int | Sequence[int]
"""Numbers and slices behind commas, or numbers; negative ones count from the end."""

_NUMBER = r"-?\d{1,18}"
_BOUND = rf"({_NUMBER}|100%|\d{{1,2}}%)?"
_ITEM = re.compile(rf"{_NUMBER}|{_BOUND}:{_BOUND}(:0*[1-9]\d{{0,17}})?", re.ASCII)
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
    for first, slices in _items(selected, count):
        for bound in (first, slices.stop) if slices else (first,):
            if bound is not None and not -count <= bound <= count - (slices is None):
                return bound
    return None


def among(selected: str, index: int, count: int | None) -> bool:
    """Whether one of so many, or of nobody knows how many, is selected."""
    many = _MANY if count is None else count
    for first, slices in _items(selected, many):
        if slices:
            if index in range(*slices.indices(many)):
                return True
        elif first is not None and index == first + (count or 0 if first < 0 else 0):
            return True
    return False


def needs_count(selected: str) -> bool:
    """Whether it can only be told where it is known how many there are."""
    return "-" in selected or "%" in selected


def _items(selected: str, count: int) -> Iterator[tuple[int | None, slice | None]]:
    """The first number of every item, and the slice that it begins."""
    for item in selected.split(","):
        numbers = [_number(part, count) for part in item.split(":")]
        yield numbers[0], slice(*numbers) if ":" in item else None


def _number(text: str, count: int) -> int | None:
    if text.endswith("%"):
        return (2 * count * int(text[:-1]) + 100) // 200
    return int(text) if text else None
