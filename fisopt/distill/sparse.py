"""A sparse student: the rewritten Program learns to do what the dense model does.

Source: Efficient-vDiT, arXiv:2502.06155 (knowledge distillation, its last stage).  The student is
the Program that passes make of the model, its parameters are the model's own, so that the weights
that are learnt also load into the plain model.  Targets are taken at the states that the sampler
visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fisopt.checked import checked, count
from fisopt.codegen.compile import Backend
from fisopt.distill.following import Task, follow, guidance_of, recipe_of
from fisopt.distill.lessons import Supplied
from fisopt.distill.student import Student
from fisopt.distill.trainer import Seen, Training
from fisopt.errors import OptionError
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass


@checked
def sparse(
    pipeline: Any,
    prompts: Sequence[str] | Path | str,
    passes: Sequence[Pass | str] | Recipe,
    *,
    steps: int = 4,
    guidance: float | None = None,
    training: Training = Training(),  # noqa: B008 - it cannot change
    supplied: Supplied = Supplied(),  # noqa: B008
    arguments: Mapping[str, Any] | None = None,
    component: str | None = None,
    backend: Backend = "eager",
    lora: int | None = None,
    features: float = 0.0,
    folder: Path | str | None = None,
    save_every: int = 100,
    seen: Seen = lambda _: None,
) -> Student:
    """Train a model to run under passes.

    Args:
        pipeline: a diffusers pipeline, whose scheduler with ``steps`` steps is the sampler; its
            dense model is the teacher. `sparse` leaves the pipeline as it was.
        prompts: texts of the training clips, or the folder that `prepare` wrote.
        passes: passes or preset names, or a recipe of this transformer.
        steps: steps of the sampler.
        guidance: guidance scale of teacher and student; None for that of ``arguments``, or the
            pipeline's default. 1 for a model with distilled guidance.
        training: see `consistency`, also for the arguments below.
        supplied: where the student's steps start, and how many paths to compute.
        arguments: more arguments of every call of the pipeline.
        component: the transformer to train, of a pipeline that has two and runs one at all noise
            levels; two that take turns by noise level (Wan 2.2 A14B) are not trained.
        backend: what runs the student, see `fisopt.optimize`.
        lora: rank of adapters to train instead of the weights (peft).
        features: weight, next to the loss of the output, of the relative distance between each
            block's output and the dense model's in the same call; 0 compares none. A block that
            runs on some frames is compared on those.
        folder: where to keep the state of the run.
        save_every: steps between two saves.
        seen: called with the trainer after every step.

    Returns:
        The student, with averaged weights.

    Raises:
        OptionError: an argument is out of range or has a wrong type; there is no pass.
        InputError: see `consistency`.
        PassError: a pass cannot be applied.
        RecipeError: the recipe is for another model.
        FileError: the state cannot be written.
    """
    count("distill: steps", steps)
    recipe = recipe_of(pipeline, component, passes)
    if not recipe.passes:
        raise OptionError("distill: sparse wants passes, got none; consistency trains a dense one")
    arguments = dict(arguments or {})
    weight = guidance_of(pipeline, guidance, arguments)
    task = Task(
        pipeline=pipeline,
        prompts=prompts,
        steps=steps,
        hops=1,
        teacher_guidance=weight,
        guidance=weight,
        recipe=recipe,
        arguments=arguments,
        component=component,
        backend=backend,
        lora=lora,
        features=features,
    )
    kept = None if folder is None else Path(folder)
    return follow(task, training, supplied, kept, save_every, seen)
