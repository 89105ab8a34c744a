"""Few steps: a student that reaches with each step what its teacher reaches with many.

Sources: Efficient-vDiT, arXiv:2502.06155 (multi-step consistency distillation, its first stage);
Multistep Consistency Models, arXiv:2403.06807.  The trajectory is cut into as many segments as the
student has steps.  Ours: the target at a segment's end is the teacher's own state there, computed
with all its small steps, and the student also starts segments where it came itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

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
def consistency(
    pipeline: Any,
    prompts: Sequence[str] | Path | str,
    *,
    steps: int = 4,
    teacher_steps: int = 48,
    guidance: float | None = None,
    passes: Sequence[Pass | str] | Recipe = (),
    training: Training = Training(),  # noqa: B008 - it cannot change
    supplied: Supplied = Supplied(),  # noqa: B008
    arguments: Mapping[str, Any] | None = None,
    component: str | None = None,
    backend: Backend = "eager",
    lora: int | None = None,
    latents: Tensor | None = None,
    lead: int | None = None,
    folder: Path | str | None = None,
    save_every: int = 100,
    seen: Seen = lambda _: None,
) -> Student:
    """Train a student of few steps, with guidance folded in.

    Args:
        pipeline: a diffusers pipeline, whose scheduler with ``steps`` steps is the student's; it
            is left as it was.
        prompts: what the clips that it learns from show, or the folder that `prepare` wrote.
        steps: of the student's sampler, which runs without guidance.
        teacher_steps: of the teacher for a whole clip, a multiple of ``steps``.
        guidance: the teacher's; None for that of ``arguments``, or the pipeline's default.
        passes: passes or preset names that the student runs under, or a recipe of this
            transformer; none for a dense one.
        training: steps, batch, learning rate and so on.
        supplied: how many of the teacher's paths are laid, and where steps start.
        arguments: more arguments of every call of the pipeline, such as the size of a clip.
        component: of a pipeline with two transformers, the one to train.
        backend: what runs the student, see `fisopt.optimize`.
        latents: clips to learn from, [prompts, ...], one a prompt, as the model takes them; None
            for the teacher's own paths.  With clips, steps start at clips under noise.
        lora: rank of adapters to train in the place of the weights (peft).
        lead: with clips, steps of the teacher for a target; the student itself goes the rest of the
            segment.  Much cheaper, and less sure: its own errors are in the target.  None has the
            teacher go to the end.
        folder: where the state of the run is kept; a run that was broken off goes on from it.
        save_every: steps between two states.
        seen: called with the trainer after every step.

    Returns:
        The student, with averaged weights.

    Raises:
        OptionError: something is out of range or of a wrong type; the student's steps do not
            divide the teacher's.
        InputError: latents are of another shape; there is no prompt; the scheduler is not one of a
            deterministic sampler; a pass has no gradient; a loss is not finite: what ``folder``
            holds then is from before.
        FileError: the state cannot be written.
    """
    count("distill: steps", steps)
    count("distill: teacher_steps", teacher_steps)
    if lead is not None and latents is None:
        raise OptionError("distill: lead needs latents: on its own paths the teacher is at the end")
    if teacher_steps % steps:
        near = round(teacher_steps / steps) * steps
        raise OptionError(
            f"distill: {steps} segments do not divide the teacher's {teacher_steps} steps; use "
            f"teacher_steps={max(near, steps)}"
        )
    arguments = dict(arguments or {})
    task = Task(
        pipeline=pipeline,
        prompts=prompts,
        steps=steps,
        hops=teacher_steps // steps,
        teacher_guidance=guidance_of(pipeline, guidance, arguments),
        guidance=1.0,
        recipe=recipe_of(pipeline, component, passes),
        arguments=arguments,
        component=component,
        backend=backend,
        lora=lora,
        latents=latents,
        lead=lead,
    )
    kept = None if folder is None else Path(folder)
    return follow(task, training, supplied, kept, save_every, seen)
