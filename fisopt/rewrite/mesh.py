"""Ranks: which of a Program's values are divided among processes, and among how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Share:
    """Some ranks that divide one thing among them.

    Attributes:
        of: what: "tokens" of every frame, "items" of the batch, or "branches": whole calls, one
            of each guidance branch, which the graph says nothing of.
        group: the name of their process group.
        count: how many they are.
    """

    of: Literal["branches", "items", "tokens"]
    group: str
    count: int
