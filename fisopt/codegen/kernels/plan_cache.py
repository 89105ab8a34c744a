"""What is made of a plan, kept as long as its tensors live and are not changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_MADE: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
T = TypeVar("T")


def once_a_plan(rows: Tensor, keys: Tensor, place: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returns, made once for the two tensors of a plan and a place."""
    versions = tuple(0 if x.is_inference() else x._version for x in (rows, keys))
    by_rows = _MADE.setdefault(keys, WeakTensorKeyDictionary())
    known = by_rows.setdefault(rows, {})
    if (place, versions) not in known:
        known[place, versions] = make()
    return cast(T, known[place, versions])
