"""Options that are one for every block, or one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fisopt.errors import OptionError, PreconditionError, shown

Strides = int | tuple[int, ...]
"""A stride: one for all blocks, or one for each video block in execution order."""


def by_block(where: str, value: object, check: Callable[[object], bool], wanted: str) -> Any:
    """An option as it is kept: one value, or a tuple of them.

    Raises:
        OptionError: a value is not as wanted, or there are none.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not values or not all(map(check, values)):
        raise OptionError(
            f"{where} must be {wanted}, or a list of such for each video block, got {shown(value)}"
        )
    return values if isinstance(value, (tuple, list)) else value


def of_block(value: Any, index: int) -> Any:
    """The value for one block."""
    return value[index] if isinstance(value, tuple) else value


def check_count(option: str, value: object, blocks: int, pass_name: str) -> None:
    """Insist on as many values as the model has blocks, where there is one for each.

    Raises:
        PreconditionError: there are more or fewer.
    """
    if isinstance(value, tuple) and len(value) != blocks:
        raise PreconditionError(
            f"{option} is given for {len(value)} blocks, the model has {blocks} video blocks; give "
            "one for all, or one for each",
            pass_name=pass_name,
        )


def largest(value: Strides) -> int:
    """The largest stride."""
    return max(value) if isinstance(value, tuple) else value
