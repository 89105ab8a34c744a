"""The run that `consistency` and `sparse` have in common: a student follows its teacher's paths."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fisopt import models
from fisopt.api import optimize
from fisopt.checked import Checked, count
from fisopt.codegen.compile import Backend
from fisopt.distill.conditions import Conditions, record
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.levels import Levels
from fisopt.distill.lora import adapted
from fisopt.distill.path import walk
from fisopt.distill.student import Student
from fisopt.distill.supply import Supply
from fisopt.distill.trainer import Seen, Trainer, Training
from fisopt.errors import InputError, OptionError, shown
from fisopt.pipelines import one_of
from fisopt.rewrite.pass_base import Pass

STATE = "state.pt"


@dataclass(frozen=True)
class Supplied(metaclass=Checked):
    """Where a student's steps start, and how many of its teacher's paths there are.

    Attributes:
        own: share of clips that go on from where the student came itself; the others start each
            step on the teacher's path.
        reuse: steps until a batch of new paths is laid.
        kept: batches of paths that are held.
    """

    own: float = 0.8
    reuse: int = 4
    kept: int = 16

    def __post_init__(self) -> None:
        for name in ("reuse", "kept"):
            count(f"Supplied: {name}", getattr(self, name))
        if not isinstance(self.own, (int, float)) or not 0 <= self.own <= 1:
            raise OptionError(f"Supplied: own: got {shown(self.own)}, wanted a number from 0 to 1")


@dataclass(frozen=True)
class Task:
    """What is to be learnt, from what.

    Attributes:
        pipeline: a diffusers pipeline.
        prompts: texts.
        steps: of the student's sampler.
        hops: the teacher's steps for one of those.
        teacher_guidance: weight of guidance in the teacher.
        guidance: in the student; 1 runs one branch.
        passes: of the student.
        arguments: more arguments of every call of the pipeline.
        component: the transformer, of a pipeline with two.
        backend: what runs the student, see `fisopt.optimize`.
        latents: clips to learn from, one a prompt; None for the teacher's own paths.
        lora: rank of the adapters that are trained; None trains the weights.
    """

    pipeline: Any
    prompts: Sequence[str]
    steps: int
    hops: int
    teacher_guidance: float
    guidance: float
    passes: tuple[Pass, ...]
    arguments: Mapping[str, Any]
    component: str | None
    backend: Backend
    lora: int | None
    latents: Tensor | None


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
    component = one_of(task.pipeline, task.component)
    found: nn.Module = getattr(task.pipeline, component)
    teacher: nn.Module = getattr(found, "original", found)
    _check_passes(task.passes)
    conditions, levels = _recorded(task, component, teacher)
    student: Any = copy.deepcopy(teacher).eval()
    if training.checkpoints:
        _checkpoint(student)
    learnt = dict(student.named_parameters())
    if task.lora is not None:
        student.requires_grad_(False)
        learnt = adapted(student, task.lora, models.spec_of(student).blocks)
    runs: Any = student
    if task.passes or task.backend != "eager":
        runs = optimize(student, task.passes, backend=task.backend)
    device = next(teacher.parameters()).device
    conditions = conditions.to(device)
    taught = Denoiser(teacher, levels, task.teacher_guidance, training.precision)
    learns = Denoiser(runs, levels, task.guidance, training.precision)
    supply = Supply(
        taught,
        conditions,
        task.hops,
        training.batch,
        reuse=supplied.reuse,
        kept=supplied.kept,
        seed=training.seed,
        latents=_clips(task.latents, conditions, type(teacher).__name__),
    )
    own_share = supplied.own if task.latents is None else 0.0

    def losses(step: int, generator: torch.Generator) -> Iterator[Tensor]:
        path = supply.draw(step, generator)
        own = torch.rand(training.batch, generator=generator, device=device) < own_share
        yield from walk(learns, path, conditions, own)

    trainer = Trainer(learnt, losses, training)
    curve = _run(trainer, folder, save_every, seen)
    with torch.no_grad():
        for name, parameter in learnt.items():
            parameter.copy_(trainer.average[name])
    if training.checkpoints:
        student.disable_gradient_checkpointing()
    student.requires_grad_(False)
    sigmas = tuple(level.sigma for level in levels)
    adapter = "" if task.lora is None else component
    made = (student, runs, task.passes, task.steps, task.guidance, sigmas, tuple(curve), adapter)
    return Student(*made)


def _recorded(task: Task, component: str, teacher: nn.Module) -> tuple[Conditions, Levels]:
    """What the pipeline tells its transformer, which runs as it was given meanwhile."""
    held = getattr(task.pipeline, component)
    arguments = dict(task.arguments)
    if "guidance_scale" in inspect.signature(task.pipeline.__call__).parameters:
        arguments["guidance_scale"] = max(task.teacher_guidance, task.guidance)
    setattr(task.pipeline, component, teacher)
    try:
        return record(task.pipeline, teacher, task.prompts, task.steps, arguments)
    finally:
        setattr(task.pipeline, component, held)


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


def _check_passes(passes: Sequence[Pass]) -> None:
    for each in passes:
        if not each.differentiable:
            raise InputError(
                f"distill: {each.name} has no gradient, so no student can be trained through it; "
                "leave it out, and add it to the student's passes afterwards"
            )


def _run(
    trainer: Trainer, folder: Path | None, save_every: int, seen: Seen
) -> list[dict[str, float]]:
    """Train to the end, from where the folder's state was left; the curve since the start."""
    state = None if folder is None else folder / STATE
    if state is not None:
        trainer.resume(state)

    def note(trainer: Trainer) -> None:
        point = {"step": trainer.step, "loss": trainer.loss, "seconds": trainer.seconds}
        trainer.curve.append(point)
        if state is not None and trainer.step % save_every == 0:
            trainer.save(state)
        seen(trainer)

    try:
        trainer.run(note)
    finally:
        if state is not None:
            trainer.save(state)
    return trainer.curve
