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
    """Train a student of few steps, with guidance distilled into it.

    Args:
        pipeline: a diffusers pipeline, whose scheduler with ``steps`` steps is the student's;
            `consistency` leaves it as it was.
        prompts: texts of the training clips, or the folder that `prepare` wrote.
        steps: steps of the student's sampler, which runs without guidance.
        teacher_steps: the teacher's steps for a whole clip, a multiple of ``steps``.
        guidance: the teacher's guidance scale; None for that of ``arguments``, or the pipeline's
            default.
        passes: passes or preset names that the student runs under, or a recipe of this transformer;
            none for a dense student.
        training: steps, batch, learning rate and so on.
        supplied: how many of the teacher's paths to compute, and where the student's steps start.
        arguments: more arguments of every call of the pipeline, such as the size of a clip.
        component: the transformer to train, of a pipeline that has two and runs one at all noise
            levels; two that take turns by noise level (Wan 2.2 A14B) are not trained.
        backend: what runs the student, see `fisopt.optimize`.
        latents: clips to learn from, [prompts, ...], one for each prompt, in the model's latent
            format; None for the teacher's own paths. With clips, steps start at noised clips.
        lora: rank of adapters to train instead of the weights (peft).
        lead: with clips, number of the teacher's steps for a target; the student itself computes
            the rest of the segment. This is much cheaper but less reliable, because the target
            contains the student's own errors. With None the teacher computes the whole segment.
        folder: where to keep the state of the run; an interrupted run resumes from it.
        save_every: steps between two saves.
        seen: called with the trainer after every step.

    Returns:
        The student, with averaged weights.

    Raises:
        OptionError: an argument is out of range or has a wrong type; the student's steps do not
            divide the teacher's.
        InputError: latents have another shape; there is no prompt; ``folder`` holds the state of
            another run; the folder was prepared otherwise; two transformers take turns by
            noise level; parameters have fewer than 32 bits; the scheduler is not a deterministic
            sampler's; a pass has no gradient; or a loss is not finite: ``folder`` then keeps the
            state from before.
        RankError: several processes begin at different steps, or with different weights.
        FileError: the state cannot be written.
    """
    count("distill: steps", steps)
    count("distill: teacher_steps", teacher_steps)
    if lead is not None and latents is None:
        raise OptionError(
            "distill: lead needs latents: the teacher computes its own paths to the end anyway"
        )
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
