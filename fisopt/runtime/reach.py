"""What functions and objects hold outside of dicts: closures, defaults, slots, bound objects."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Any

from fisopt.rewrite.tracing.held_state import slots

FUNCTIONS = (FunctionType, MethodType, functools.partial)
"""What is called and holds more than its code."""


@dataclass(frozen=True)
class Attributes:
    """The attributes of an object, as entries of a container.

    Attributes:
        of: the object.
    """

    of: Any

    def __getitem__(self, name: str) -> Any:
        return getattr(self.of, name)


def parts(value: Any) -> Iterator[tuple[str, Attributes, str]]:
    """What a function, or an object with slots, holds: its name, and where it is."""
    if isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if is_filled(cell):
                yield name, Attributes(cell), "cell_contents"
        names = ["__code__", "__defaults__", "__kwdefaults__"]
    elif isinstance(value, MethodType):
        names = ["__self__", "__func__"]
    elif isinstance(value, functools.partial):
        names = ["func", "args", "keywords"]
    else:
        names = list(slots(type(value)))
    for name in names:
        if hasattr(value, name):
            yield name, Attributes(value), name


def is_filled(cell: CellType) -> bool:
    """Whether a variable that a function closes over has a value."""
    try:
        cell.cell_contents  # noqa: B018 - a variable that has no value yet raises
    except ValueError:
        return False
    return True
