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
            dense model is the teacher.  It is left as it was.
        prompts: what the clips that it learns from show, or the folder that `prepare` wrote.
        passes: passes or preset names, or a recipe of this transformer.
        steps: of the sampler.
        guidance: weight of guidance in teacher and student; None for that of ``arguments``, or the
            pipeline's default.  1 for a model that has guidance folded in.
        training: see `consistency`, as are all that follow.
        supplied: where steps start, and how many paths are laid.
        arguments: more arguments of every call of the pipeline.
        component: of a pipeline with two transformers, the one to train.
        backend: what runs the student.
        lora: rank of adapters to train in the place of the weights (peft).
        features: weight, beside the loss of the output, of the relative distance between what each
            block returns and what the dense model's returns in the same call; 0 compares none.
            Blocks on some frames are compared there.
        folder: where the state of the run is kept.
        save_every: steps between two states.
        seen: called with the trainer after every step.

    Returns:
        The student, with averaged weights.

    Raises:
        OptionError: something is out of range or of a wrong type; there is no pass.
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
