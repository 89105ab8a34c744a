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
        runs: the module for a pipeline: the model under its passes, or the model itself.
        recipe: the recipe it was trained to run under, with no passes if it is dense.
        steps: steps of its sampler.
        guidance: guidance scale that it runs with; 1 if the teacher's guidance is distilled into
            it.
        sigmas: the noise levels of its steps, the clean one last.
        adapter: the pipeline component whose adapter was trained; empty if the weights were
            trained.
        curve: for each optimiser step: its number, the loss and the seconds so far.
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
        """The passes it was trained to run under; none if it is dense."""
        return self.recipe.passes

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its parameters by name, on the CPU."""
        return {n: p.detach().cpu() for n, p in self.model.named_parameters()}

    def save(self, folder: Path | str, *, force: bool = False) -> Path:
        """Write a folder for diffusers' ``from_pretrained``, with a recipe and a model card.

        Args:
            folder: where to write.
            force: replace an existing folder that `save` wrote.

        Raises:
            ExportError: the folder cannot be written; existing files stay unchanged.
            InputError: the model has no ``save_pretrained``.
        """
        return save(self, Path(folder), force=force)

    def card(self) -> dict[str, Any]:
        """The content of the model card, as JSON values."""
        last = self.curve[-1] if self.curve else {}
        return {
            "model": type(self.model).__name__,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sigmas": [round(s, 6) for s in self.sigmas],
            "passes": [repr(p) for p in self.passes],
            "trained": dict(last),
        }
