"""The nodes.  They hold no algorithm: each calls one function of fisopt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import comfy.sample
import comfy.samplers

import fisopt
from fisopt.cli.expressions import parse_passes
from fisopt.errors import OptionError

from .families import recipe_for, spec_of
from .forward import attach, attached, still
from .tuning import Sampling, tuned

CATEGORY = "fisopt"
RECIPE = "FISOPT_RECIPE"


class LoadRecipe:
    """A recipe from a file, which `fisopt tune`, Python or the tune node wrote."""

    RETURN_TYPES, FUNCTION, CATEGORY = (RECIPE,), "load", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"path": ("STRING", {"default": "out/recipe.yaml"})}}

    @classmethod
    def IS_CHANGED(cls, path: str) -> float:
        """A file that was written anew is read anew."""
        return Path(path).stat().st_mtime

    def load(self, path: str) -> tuple[fisopt.Recipe]:
        """Read the file."""
        return (fisopt.Recipe.load(path),)


class Apply:
    """Passes, or a recipe, on a model."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "passes": ("STRING", {"default": "few-balanced", "multiline": True}),
                "backend": (["inductor", "eager"],),
                "strict": ("BOOLEAN", {"default": True}),
            },
            "optional": {"recipe": (RECIPE,)},
        }

    def apply(
        self,
        model: Any,
        passes: str,
        backend: str,
        strict: bool,
        recipe: fisopt.Recipe | None = None,
    ) -> tuple[Any]:
        """Optimise the diffusion model; ``passes`` has one pass or preset a line.

        Raises:
            OptionError: both passes and a recipe are given, or neither.
        """
        lines = [line for line in passes.splitlines() if line.strip()]
        if bool(lines) == (recipe is not None):
            raise OptionError(
                "fisopt: give either passes or a recipe; with a recipe empty the field of passes"
            )
        patcher = still(model)
        diffusion_model = patcher.get_model_object("diffusion_model")
        spec = spec_of(diffusion_model)
        if recipe is None:
            chosen: dict[str, Any] = {"passes": parse_passes(lines)}
        else:
            chosen = {"recipe": recipe_for(recipe, diffusion_model)}
        made = fisopt.optimize(diffusion_model, spec=spec, backend=backend, strict=strict, **chosen)
        return (attach(patcher, made),)


class Tune:
    """Passes for a model, or for the two of Wan 2.2 A14B, chosen by a target."""

    RETURN_TYPES, FUNCTION, CATEGORY = (RECIPE, RECIPE, "STRING"), "tune", CATEGORY
    RETURN_NAMES = ("recipe", "recipe_2", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        ksampler = comfy.samplers.KSampler
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "target": ("STRING", {"default": "2x"}),
                "steps": ("INT", {"default": 4, "min": 1}),
                "cfg": ("FLOAT", {"default": 1.0, "min": 0.0, "step": 0.1}),
                "sampler_name": (ksampler.SAMPLERS,),
                "scheduler": (ksampler.SCHEDULERS,),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63}),
                "clips": ("INT", {"default": 4, "min": 2}),
                "minutes": ("FLOAT", {"default": 15.0, "min": 0.1}),
                "save_as": ("STRING", {"default": "out/recipe.yaml"}),
            },
            "optional": {
                "model_2": ("MODEL",),
                "switch_at_step": ("INT", {"default": 2, "min": 1}),
            },
        }

    def tune(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        target: str,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        seed: int,
        clips: int,
        minutes: float,
        save_as: str,
        model_2: Any = None,
        switch_at_step: int = 2,
    ) -> tuple[fisopt.Recipe | None, fisopt.Recipe | None, str]:
        """Search, write the recipes, and tell what was found; a dense model has no recipe.

        Raises:
            OptionError: one of two models has no step.
        """
        if model_2 is not None and not 0 < switch_at_step < steps:
            raise OptionError(
                f"fisopt: got switch_at_step={switch_at_step} with {steps} steps, wanted 1 to "
                f"{steps - 1}, so that each of the two models has a step; or disconnect model_2"
            )
        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        sampling = Sampling(
            positive, negative, latent, steps, cfg, sampler_name, scheduler, seed, switch_at_step
        )
        patchers = [model] if model_2 is None else [model, model_2]
        found = tuned(patchers, sampling, target, clips, minutes)
        written = found.save(save_as, force=True)
        report = [f"{found.speed_up:.2f}x, error {found.error:.3f}, {found.psnr:.1f} dB"]
        report += [*found.notes, *(f"wrote {path}" for path in written.values())]
        recipes = (found.recipes.get(name) for name in ("transformer", "transformer_2"))
        return (*recipes, "\n".join(report))  # type: ignore[return-value]


class Summary:
    """What ran at each step of the newest generation, and how long it took."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT", "STRING"), "summarise", CATEGORY
    OUTPUT_NODE: ClassVar[bool] = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "latent": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Every run has figures of its own."""
        return float("nan")

    def summarise(self, model: Any, latent: Any) -> dict[str, Any]:
        """Describe the model; the latents come from the sampler, so that this runs after it.

        Raises:
            OptionError: no node applied fisopt.
        """
        module = attached(model)
        if module is None:
            raise OptionError("fisopt: this model is not optimised; connect the one from `apply`")
        text = str(fisopt.summary(module))
        return {"ui": {"text": [text]}, "result": (latent, text)}
