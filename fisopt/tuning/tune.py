"""Tune: as much of the video as a speed allows, or as much speed as an error allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fisopt.checked import checked, choice
from fisopt.errors import InputError, OptionError, shown
from fisopt.pipelines import transformers_of
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.program import Program
from fisopt.tuning.component import Component
from fisopt.tuning.costs import UNITS, FlopCosts, Unit
from fisopt.tuning.goal import Goal
from fisopt.tuning.own import check_own
from fisopt.tuning.progress import Progress
from fisopt.tuning.recorder import Generate, Recorder
from fisopt.tuning.rehearsal import Rehearsal
from fisopt.tuning.search import Search, components_of
from fisopt.tuning.space import Space, most_bands
from fisopt.tuning.trial import Trials
from fisopt.tuning.tuned import Tuned


@checked
def tune(
    pipeline: Any,
    target: str,
    prompts: Sequence[str],
    *,
    steps: int,
    minutes: float = 15.0,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    costs: Unit | None = None,
    passes: Sequence[BlockPass] = (),
    progress: Path | str | None = None,
    seen: Callable[[int], object] | None = None,
) -> Tuned:
    """Choose passes for a pipeline by a target.

    For each block, branch of it and group of denoising steps one of many options is chosen, by
    the error that it alone leaves in the final latents; whole plans are then measured and
    repaired.

    Args:
        pipeline: a diffusers pipeline, all transformers of which are tuned; it is left as it was.
            One of no known family is optimised with its ``spec`` before, by `fisopt.optimize`.
        target: "2x", "350ms" (of all transformer calls of one clip), "error<=0.1" (relative L2
            error of the final latents) or "psnr>=28" (dB, of the final latents).  What a speed is a
            ratio of, ``costs`` says.
        prompts: what to generate, two texts or more, one for each generation.  Plans are chosen
            by the first four; of six or more the others say how good the chosen one is.
        steps: denoising steps of a generation.
        minutes: when to stop; fewer minutes price fewer blocks apart.
        seed: of the noise of the first generation; each next one adds one.
        arguments: more arguments of every call of the pipeline, such as its size; JSON values.
        generate: runs the pipeline for the prompt of a number and returns the final latents, where
            a call with prompt, steps, generator and arguments is not enough.
        costs: "flops" by the cost model; "inductor" or "eager", by seconds on the pipeline's
            device, for which every stage (a block under an option) that differs is compiled by this
            backend and timed once.  None: FLOPs, but of a target in milliseconds "inductor".
        passes: passes of your own as further choices, see `fisopt.BlockPass`.  Each is tried in
            every block and group of steps that its ``blocks`` and ``steps`` allow: in the place of
            other options of the branch that it changes, or of all of the block where it changes
            several.  A recipe with one loads where its module is imported.
        progress: a file for what is measured; a run that was cut short goes on from it, and another
            target measures little again.
        seen: called with the number of measurements so far.

    Returns:
        The plan.  A target out of reach gives the nearest plan and what limits it.

    Raises:
        OptionError: the target is of another unit or below 1x, the minutes allow nothing, or one of
            the passes is no `BlockPass`.
        RecipeError: a recipe cannot hold the options of one of the passes.
        InputError: there are fewer than two prompts; the pipeline draws noise that its generator
            does not pair; what ``progress`` holds is of another run.
    """
    goal = Goal.of(target)
    check_minutes(minutes)
    unit, own = unit_for(costs, goal), check_own(passes)
    if isinstance(prompts, (list, tuple)) and len(prompts) < 2:
        raise InputError(
            f"tune: got {len(prompts)} prompts, wanted two or more: one to choose by, others to "
            "see whether the choice holds"
        )
    recorder = _recorder(pipeline, prompts, steps, seed, arguments, generate)
    about = recorder.about()
    about["weights"] = recorder.weights() if progress is not None else ""
    kept = Progress(progress, about, damage)
    trials = Trials(recorder)
    with trials.ready():
        return Search(trials, goal, kept, unit, 60.0 * minutes, seen, own).run()


def rehearse(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    target: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    passes: Sequence[BlockPass] = (),
) -> Rehearsal:
    """What `tune` would do, told without a run of the transformers.

    The pipeline runs once, with transformers that return zeros.

    Args:
        pipeline: see `tune`; so are the others.
        prompts: of which the first is used.
        steps: denoising steps of a generation.
        target: a plan for it is made by the prices of the testbed, where it is a speed.
        arguments: of every call.
        generate: runs the pipeline.
        passes: of your own.

    Raises:
        InputError: see `tune`.
        OptionError: the target is none.
    """
    goal = None if target is None else Goal.of(target)
    own, recorder = check_own(passes), _recorder(pipeline, prompts, steps, 0, arguments, generate)
    trials = Trials(recorder)
    with trials.ready():
        components = components_of(trials, trials.pretend(0), FlopCosts(), own)
        return Rehearsal.of(Space(components, steps, most_bands(components)), goal)


def rehearse_program(
    program: Program,
    *,
    steps: int,
    target: str | None = None,
    passes: Sequence[BlockPass] = (),
) -> Rehearsal:
    """The same for one transformer alone, a Program of which there may be no weights.

    Args:
        program: the dense Program, see `fisopt.capture`; one call at each step.
        steps: denoising steps of a generation.
        target: see `rehearse`.
        passes: of your own.
    """
    calls, own = Counter(range(steps)), check_own(passes)
    component = Component("transformer", program, calls, own=own)
    goal = None if target is None else Goal.of(target)
    return Rehearsal.of(Space([component], steps, most_bands([component])), goal)


def _recorder(
    pipeline: Any,
    prompts: Sequence[str],
    steps: int,
    seed: int,
    arguments: Mapping[str, Any] | None,
    generate: Generate | None,
) -> Recorder:
    return Recorder(
        pipeline,
        prompts,
        steps=steps,
        seed=seed,
        component=next(iter(transformers_of(pipeline))),
        arguments=arguments,
        generate=generate,
    )


def check_minutes(minutes: object) -> None:
    """Insist on a number of minutes.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(minutes, (int, float)) or isinstance(minutes, bool) or not minutes > 0:
        raise OptionError(f"minutes must be a number above 0, got {shown(minutes)}")


def unit_for(costs: object, goal: Goal) -> Unit:
    """The unit of costs for a target: the one that is given, else the one that fits.

    Raises:
        OptionError: it is none, or a target in milliseconds is to be reached by FLOPs.
    """
    if costs is None:
        return "inductor" if goal.kind == "ms" else "flops"
    choice("costs", costs, UNITS)
    if goal.kind == "ms" and costs == "flops":
        raise OptionError(
            f"target {goal} is a time and costs='flops' has none; pass costs='inductor' or "
            "costs='eager', the backend that the plan will run with"
        )
    return cast("Unit", costs)


def damage(model: Any, prompts: Mapping[str, Any]) -> str:
    """What of some progress is not as it is kept, in words; empty if nothing is."""
    bands, seconds = model.get("bands", 1), model.get("seconds", {})
    fine = type(bands) is int and bands > 0 and isinstance(seconds, dict)
    fine = fine and all(isinstance(s, (int, float)) and s > 0 for s in seconds.values())
    errors = [e for found in prompts.values() for e in found.values()]
    if not fine or not all(isinstance(e, (int, float)) and e >= 0 for e in errors):
        return "wanted errors that are numbers of at least 0"
    return ""
