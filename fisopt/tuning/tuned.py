"""Tuned: the plan that was found, what is known of it, and what was left untried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fisopt.page.data import Choice
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass
from fisopt.tuning.costs import Unit


@dataclass(frozen=True)
class Tuned:
    """The result of `fisopt.tune`.

    Attributes:
        target: the target that you set.
        reached: whether the plan reaches it.
        passes: the plan, by transformer, as `fisopt.optimize` takes it.
        recipes: the plan as recipes, by transformer; see `save`.
        speed_up: cost of the dense transformers over cost of the optimised ones.
        error: relative L2 error of the final latents, geometric mean over the prompts: over those
            that `tune` did not choose by, if there are two or more of them.
        psnr: mean PSNR of the same latents in dB, with the range of the dense latents as peak.
        costs: the unit of cost, see `fisopt.tune`.
        seconds: time of all transformer calls of a clip under the plan, by the times of their
            stages; None if costs are FLOPs.
        predicted: the error predicted from the prices of the plan's changes, times a correction
            from measured plans; of a preset the error that was measured on the prompts that `tune`
            chose by.
        prices: squared relative error of each single change that `tune` measured, by name and
            prompt.
        front: predicted points for other targets: ``[speed-up, error]``.
        choices: what runs in every branch of every block, with the error that it causes alone;
            empty if the plan is a preset.
        notes: what limits the plan and what `tune` did not try, in words.
    """

    target: str
    reached: bool
    passes: Mapping[str, list[Pass]]
    recipes: Mapping[str, Recipe]
    speed_up: float
    error: float
    psnr: float
    predicted: float
    costs: Unit = "flops"
    seconds: float | None = None
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    front: tuple[tuple[float, float], ...] = ()
    choices: tuple[Choice, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def save(self, path: Path | str, *, force: bool = False) -> dict[str, Path]:
        """Write a recipe for each optimised transformer.

        Args:
            path: path of the recipe; with two transformers their names go before its suffix.
            force: replace existing files.

        Returns:
            The paths by transformer, as ``fisopt.optimize(pipeline, recipe=...)`` takes them.
        """
        path = Path(path)
        many = len(self.recipes) > 1
        return {
            name: recipe.save(
                path.with_suffix(f".{name}{path.suffix}") if many else path, force=force
            )
            for name, recipe in self.recipes.items()
        }

    @property
    def speed(self) -> str:
        """The speed-up, in words."""
        by = "FLOPs" if self.seconds is None else f"the times of stages, {self.costs}"
        return f"speed-up of the transformers, by {by}"

    def said(self) -> dict[str, Any]:
        """The figures, as plain values."""
        return {
            "target": self.target,
            "speed_up": round(self.speed_up, 3),
            "error": round(self.error, 4),
            "psnr": round(self.psnr, 2),
        }
