"""What a recipe was tuned for, and the figures that it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fisopt.errors import RecipeError, shown

Tuned = Mapping[str, float | str]
"""``target``, ``steps``, ``prompts``, ``speed_up``, ``error`` and ``psnr``; empty if not tuned."""
UNTUNED: Tuned = {}


def read_tuned(said: Any, source: str) -> Tuned:
    """The figures of a recipe, from plain values.

    Raises:
        RecipeError: they are no numbers and words by name.
    """
    fine = isinstance(said, Mapping) and all(
        isinstance(name, str) and isinstance(value, (int, float, str))
        for name, value in said.items()
    )
    if not fine or (said and type(said.get("steps")) is not int):
        raise RecipeError(
            f"{source}: got tuned={shown(said)}, wanted numbers and words by name, with the steps"
        )
    return dict(said)


def other_steps(tuned: Tuned, steps: int | None) -> str:
    """What to say of a generation of another number of steps, empty if there is nothing."""
    if not tuned or steps in (None, tuned["steps"]):
        return ""
    figures = ", ".join(f"{name} {tuned[name]}" for name in ("speed_up", "psnr") if name in tuned)
    return (
        f"the passes were tuned for {tuned['steps']} denoising steps ({figures}), this generation "
        f"has {steps}: neither holds here; tune for {steps} steps"
    )
