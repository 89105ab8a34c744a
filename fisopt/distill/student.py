"""What distillation makes: the trained model, what it was trained for, and how that went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fisopt.distill.saving import save
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass


@dataclass(frozen=True)
class Student:
    """A distilled model.

    Attributes:
        model: the trained model, of the teacher's class; it also runs dense.
        runs: what takes its place in a pipeline: the model under its passes, or the model.
        recipe: what it was trained to run under, with no passes if it is dense.
        steps: of its sampler.
        guidance: weight of guidance that it runs with; 1 where the teacher's is folded in.
        sigmas: the noise levels of its steps, the clean one last.
        adapter: the component of the pipeline whose adapter was trained; empty where the weights
            were.
        curve: for each optimiser step its number, the loss and the seconds so far.
    """

    model: nn.Module
    runs: Any
    recipe: Recipe
    steps: int
    guidance: float
    sigmas: tuple[float, ...]
    curve: tuple[Mapping[str, float], ...]
    adapter: str = ""

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What it was trained to run under; none if it is dense."""
        return self.recipe.passes

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its parameters by name, on the CPU."""
        return {n: p.detach().cpu() for n, p in self.model.named_parameters()}

    def save(self, folder: Path | str, *, force: bool = False) -> Path:
        """Write what diffusers loads with ``from_pretrained``, a recipe and a model card.

        Args:
            folder: where; it may be there with ``force`` if `save` wrote it.
            force: whether it is replaced.

        Raises:
            ExportError: it cannot be written; what was there is unchanged.
            InputError: the model has no ``save_pretrained``.
        """
        return save(self, Path(folder), force=force)

    def card(self) -> dict[str, Any]:
        """What the model card says, as JSON values."""
        last = self.curve[-1] if self.curve else {}
        return {
            "model": type(self.model).__name__,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sigmas": [round(s, 6) for s in self.sigmas],
            "passes": [repr(p) for p in self.passes],
            "trained": dict(last),
        }
