"""What token reduction reduces by: queries and values, their tiers and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard

Feature = Literal["query", "value"]
FEATURES: tuple[Feature, ...] = ("query", "value")
IN_FILE: dict[Feature, str] = {"query": "q", "value": "v"}
Tiers = tuple[tuple[int, ...], ...]
"""Tiers by block, then by step."""
Thresholds = tuple[tuple[int, float], ...]
"""Pairs of a tier and the dropped share that is used from that tier on."""
FORM = (
    "wanted {q: {tier: ratio, ...}, v: {tier: ratio, ...}, tiers: {q: [[tier, ...], ...], "
    "v: ...} or table: FILE, measured: {...}}"
)
"""What a file of a schedule holds."""


def are_tiers(value: object) -> bool:
    """Whether a value is ints [blocks][steps]."""
    return are_rows(value) and all(type(tier) is int for row in value for tier in row)


def are_rows(value: object) -> TypeGuard[Sequence[Sequence[object]]]:
    """Whether a value is rows of values."""
    rows = (tuple, list)
    return isinstance(value, rows) and all(isinstance(row, rows) for row in value)
