"""The run that `consistency` and `sparse` have in common: a student follows its teacher's paths."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fisopt import models
from fisopt.api import optimize
from fisopt.checked import count
from fisopt.codegen.compile import Backend
from fisopt.distill.about import hashed, text
from fisopt.distill.block_outputs import BlockOutputs
from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.features import Compared
from fisopt.distill.lessons import Supplied, jumps, walks
from fisopt.distill.levels import Levels
from fisopt.distill.lora import adapted
from fisopt.distill.prepare import recorded, teacher_of
from fisopt.distill.prepared import FILE
from fisopt.distill.student import Student
from fisopt.distill.trainer import Seen, Trainer, Training
from fisopt.errors import InputError, OptionError, RecipeError, shown
from fisopt.pipelines import one_of
from fisopt.recipe.identity import Identity, digest, weights_digest
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass

STATE = "state.pt"


@dataclass(frozen=True)
class Task:
    """What is to be learnt, from what.

    Attributes:
        pipeline: a diffusers pipeline.
        prompts: texts, or the folder of what was prepared.
        steps: of the student's sampler.
        hops: the teacher's steps for one of those.
        teacher_guidance: weight of guidance in the teacher.
        guidance: in the student; 1 runs one branch.
        recipe: what the student runs: its passes, and what attends.
        arguments: more arguments of every call of the pipeline.
        component: the transformer, of a pipeline that has another one too.
        backend: what runs the student, see `fisopt.optimize`.
        latents: clips to learn from, one a prompt; None for the teacher's own paths.
        lead: hops of the teacher before the student's own jump; None for whole segments.
        lora: rank of the adapters that are trained; None trains the weights.
        features: weight of the distance between what blocks return; 0 compares none.
    """

    pipeline: Any
    prompts: Sequence[str] | Path | str
    steps: int
    hops: int
    teacher_guidance: float
    guidance: float
    recipe: Recipe
    arguments: Mapping[str, Any]
    component: str | None
    backend: Backend
    lora: int | None
    latents: Tensor | None = None
    lead: int | None = None
    features: float = 0.0

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Of the student."""
        return self.recipe.passes

    def __post_init__(self) -> None:
        for name in ("lora", "lead"):
            if (value := getattr(self, name)) is not None:
                count(f"distill: {name}", value)
        if not isinstance(self.features, (int, float)) or not 0 <= self.features < math.inf:
            raise OptionError(
                f"distill: features: got {shown(self.features)}, wanted a weight of 0 or more"
            )


def recipe_of(pipeline: Any, component: str | None, given: Sequence[Pass | str] | Recipe) -> Recipe:
    """What a student is to run: a recipe, which has to be of this transformer, or passes.

    Raises:
        InputError: a pass, or what the recipe multiplies with, has no gradient.
        OptionError: an unknown preset.
        RecipeError: the recipe is for another model.
    """
    teacher = teacher_of(pipeline, one_of(pipeline, component))
    if not isinstance(given, Recipe):
        given = Recipe.of(teacher, given)
    recipe = Recipe.read(given, teacher)
    for each in recipe.passes:
        if not each.differentiable:
            raise InputError(
                f"distill: {each.name} has no gradient, so no student can be trained through it; "
                "leave it out, and add it to the student's passes afterwards"
            )
    if recipe.kernels.rounds:
        raise InputError(
            f"distill: linear={recipe.kernels.linear!r} has no gradient, so no student can be "
            "trained through it; use a recipe without it, and pass linear= where the student runs"
        )
    return recipe


def guidance_of(pipeline: Any, given: float | None, arguments: Mapping[str, Any]) -> float:
    """The weight of guidance: the given one, that of the arguments, or the pipeline's default."""
    if given is None:
        given = arguments.get("guidance_scale")
    if given is None:
        takes = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
        given = 1.0 if takes is None or takes.default is takes.empty else takes.default
    if not isinstance(given, (int, float)) or not given >= 1:
        raise OptionError(f"distill: guidance: got {shown(given)}, wanted a number of 1 or more")
    return float(given)


def follow(
    task: Task,
    training: Training,
    supplied: Supplied,
    folder: Path | None,
    save_every: int,
    seen: Seen,
) -> Student:
    """Train a student; see `fisopt.distill.consistency`."""
    count("distill: save_every", save_every)
    component = one_of(task.pipeline, task.component)
    arguments, weight = dict(task.arguments), max(task.teacher_guidance, task.guidance)
    if weight > 1:  # else what the pipeline does by itself, which may be a guidance that it embeds
        arguments.setdefault("guidance_scale", weight)
    conditions, levels, teacher = recorded(
        task.pipeline, component, task.prompts, task.steps, arguments
    )
    student: Any = copy.deepcopy(teacher).eval()
    if training.checkpoints:
        _checkpoint(student)
    learnt = dict(student.named_parameters())
    if task.lora is not None:
        student.requires_grad_(False)
        learnt = adapted(student, task.lora, models.spec_of(student).blocks, training.seed)
    runs: Any = student
    if task.passes or task.backend != "eager":
        recipe = replace(task.recipe, model=Identity.of(student))
        runs = optimize(student, recipe=recipe, backend=task.backend)
    device = next(teacher.parameters()).device
    conditions = conditions.to(device)
    taught = Denoiser(teacher, levels, task.teacher_guidance, training.precision)
    learns = Denoiser(runs, levels, task.guidance, training.precision)
    if task.features:
        learns = _compared(task, teacher, student, learns)
    clips = _clips(task.latents, conditions, type(teacher).__name__)
    if task.lead is None or clips is None:
        losses = walks(learns, taught, conditions, clips, task.hops, training, supplied)
    else:
        losses = jumps(learns, taught, conditions, clips, task.hops, task.lead, training.batch)
    about = {} if folder is None else _about(task, supplied, levels, teacher)
    trainer = Trainer(learnt, losses, training, about)
    trainer.runs = runs
    curve = _run(trainer, folder, save_every, seen)
    trainer.finish()
    if training.checkpoints:
        student.disable_gradient_checkpointing()
    student.requires_grad_(False)
    return Student(
        model=student,
        runs=runs,
        recipe=task.recipe,
        steps=task.steps,
        guidance=task.guidance,
        sigmas=tuple(level.sigma for level in levels),
        curve=tuple(curve),
        adapter="" if task.lora is None else component,
    )


def _about(task: Task, supplied: Supplied, levels: Levels, teacher: Any) -> dict[str, str]:
    """What decides a run beside how it trains."""
    told = ("component", "steps", "hops", "teacher_guidance", "guidance", "arguments", "latents")
    found = {n: getattr(task, n) for n in (*told, "lead", "lora", "features")}
    if isinstance(task.prompts, (Path, str)):
        found["prompts"] = f"prepared, {hashed(Path(task.prompts) / FILE)}"
    else:
        found["prompts"] = f"{len(task.prompts)}, {hashed(repr(list(task.prompts)).encode())}"
    found["levels"] = [levels.prediction, levels.horizon, [round(v.sigma, 6) for v in levels]]
    found["passes"], found["kernels"] = task.passes, task.recipe.kernels
    with suppress(RecipeError):  # of a pass that no recipe takes; its repr has to do
        found["passes in full"] = digest(task.recipe.plain()["passes"])
    found["teacher"] = weights_digest([teacher])
    found["supplied"] = supplied
    return {n: v if isinstance(v, str) else text(v) for n, v in found.items()}


def _compared(task: Task, teacher: Any, student: Any, learns: Denoiser) -> Denoiser:
    """The student with its blocks beside those of the dense model."""
    by = learns.levels, task.guidance, learns.precision
    on: Any = {"backend": task.backend, "attention": task.recipe.kernels.attention}
    dense = optimize(teacher, [BlockOutputs()], **on)
    runs = optimize(student, [*task.passes, BlockOutputs()], **on)
    return Compared(Denoiser(runs, *by), Denoiser(dense, *by), task.features)


def _clips(latents: Tensor | None, conditions: Conditions, model: str) -> Tensor | None:
    """Clips of the shape that the pipeline's have."""
    wanted = (conditions.prompts, *conditions.shape)
    if latents is None:
        return None
    if not isinstance(latents, Tensor) or tuple(latents.shape) != wanted:
        got = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            f"distill: got latents {got}, wanted {list(wanted)}: one clip a prompt, of the shape "
            f"that {model} returns at this size"
        )
    return latents.to(conditions.time.device, torch.float32)


def _checkpoint(student: Any) -> None:
    if not hasattr(student, "enable_gradient_checkpointing"):
        raise InputError(
            f"distill: {type(student).__name__} has no enable_gradient_checkpointing, as models of "
            "diffusers have; leave out checkpoints"
        )
    student.enable_gradient_checkpointing()


def _run(
    trainer: Trainer, folder: Path | None, save_every: int, seen: Seen
) -> list[dict[str, float]]:
    """Train to the end, from where the folder's state was left; the curve since the start."""
    state = None if folder is None else folder / STATE
    if state is not None:
        trainer.resume(state)

    def note(trainer: Trainer) -> None:
        if state is not None and trainer.step % save_every == 0:
            trainer.save(state)
        seen(trainer)

    try:
        trainer.run(note)
    finally:
        if state is not None and trainer.whole:
            trainer.save(state)
    return trainer.curve
