"""Tune: as much of the video as a speed allows, or as much speed as an error allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fisopt.checked import checked, choice
from fisopt.codegen.kernel_options import KernelOptions, Linear
from fisopt.errors import InputError, OptionError, shown
from fisopt.pipelines import transformers_of
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.program import Program
from fisopt.tuning.component import Component, components_of
from fisopt.tuning.costs import UNITS, FlopCosts, Unit
from fisopt.tuning.goal import Goal
from fisopt.tuning.own import check_own
from fisopt.tuning.progress import Progress
from fisopt.tuning.recorder import Generate, Recorder
from fisopt.tuning.rehearsal import Rehearsal
from fisopt.tuning.search import Search
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
    linear: Linear | None = None,
    passes: Sequence[BlockPass] = (),
    progress: Path | str | None = None,
    seen: Callable[[int], object] | None = None,
) -> Tuned:
    """Choose passes for a pipeline that reach a target.

    For each block, branch of a block and group of denoising steps, `tune` chooses one of many
    options by the error that this option alone causes in the final latents. It then measures and
    repairs whole plans. Presets that reach the target are measured first; the best of them is the
    result if no plan is better.

    Args:
        pipeline: a diffusers pipeline; `tune` tunes all its transformers and leaves it as it was.
            If the model is of no known family, call `fisopt.optimize` with its ``spec`` first.
        target: "2x", "350ms" (of all transformer calls of one clip), "error<=0.1" (relative L2
            error of the final latents) or "psnr>=28" (dB, of the final latents). ``costs`` sets the
            unit of a speed-up.
        prompts: two texts or more, one for each generation. `tune` chooses plans on the first four;
            with six or more it measures the chosen plan's quality on the others.
        steps: denoising steps of a generation.
        minutes: time limit; with less time `tune` measures larger groups of blocks together.
        seed: seed of the first generation's noise; each next generation adds one.
        arguments: more arguments of every call of the pipeline, such as its size; JSON values.
        generate: runs the pipeline for the prompt of a given number and returns the final latents,
            if a call with prompt, steps, generator and arguments is not enough.
        costs: "flops" uses the cost model. "inductor" or "eager" use seconds on the pipeline's
            device: `tune` compiles each distinct stage (a block under an option) with this backend
            and times it once. None: FLOPs, or "inductor" for a target in milliseconds.
        linear: precision of large linear layers, see `fisopt.optimize`. With "fp8" or
            "fp8-simulated" every clip of the search rounds them, the recipe says so, and `tune`
            compares with the model in its own precision. FLOPs do not count what FP8 saves; a
            search by seconds counts it.
        passes: passes of your own as further options, see `fisopt.BlockPass`. `tune` tries each in
            every block and group of steps that its ``blocks`` and ``steps`` allow: instead of other
            options of the branch that it changes, or of the whole block if it changes several
            branches. To load a recipe with such a pass, import the pass's module first.
        progress: a file for the measurements; an interrupted run resumes from it, and a run with
            another target reuses most of them.
        seen: called with the number of measurements so far.

    Returns:
        The plan. If the target is out of reach, the nearest plan, with notes on what limits it.

    Raises:
        OptionError: the target has another unit or is below 1x, the minutes are too few, one of
            the passes is not a `BlockPass`, or ``costs`` are seconds of simulated FP8.
        LoweringError: ``linear="fp8"`` on a device without FP8.
        RecipeError: a recipe cannot hold the options of one of the passes.
        InputError: there are fewer than two prompts; the pipeline draws noise from elsewhere than
            its generator; the file ``progress`` belongs to another run.
    """
    goal = Goal.of(target)
    check_minutes(minutes)
    unit, own = unit_for(costs, goal, linear), check_own(passes)
    kernels = KernelOptions(linear)
    if isinstance(prompts, (list, tuple)) and len(prompts) < 2:
        raise InputError(
            f"tune: got {len(prompts)} prompts, wanted two or more: one to choose by, others to "
            "see whether the choice holds"
        )
    recorder = _recorder(pipeline, prompts, steps, seed, arguments, generate)
    about = recorder.about()
    about["weights"] = recorder.weights() if progress is not None else ""
    if kernels.rounds:
        about["linear"] = linear
    kept = Progress(progress, about, damage)
    trials = Trials(recorder, kernels)
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
    """Predict what `tune` would do, without running the transformers.

    The pipeline runs once, with transformers that return zeros.

    Args:
        pipeline: see `tune`, also for the other arguments.
        prompts: `rehearse` uses the first only.
        steps: denoising steps of a generation.
        target: if it is a speed, `rehearse` makes a plan for it by the testbed's prices.
        arguments: more arguments of every call of the pipeline.
        generate: runs the pipeline.
        passes: passes of your own.

    Raises:
        InputError: see `tune`.
        OptionError: the target is invalid.
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
        passes: passes of your own.
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


def unit_for(costs: object, goal: Goal, linear: Linear | None = None) -> Unit:
    """The unit of costs for a target: the one that is given, else the one that fits.

    Raises:
        OptionError: it is none, a target in milliseconds is to be reached by FLOPs, or what is to
            be timed is simulated.
    """
    if costs is None:
        costs = "inductor" if goal.kind == "ms" else "flops"
    choice("costs", costs, UNITS)
    if linear == "fp8-simulated" and costs != "flops":
        raise OptionError(
            f"target {goal} with costs={costs!r} needs times, and linear='fp8-simulated' has those "
            "of no device; pass linear='fp8' on a GPU, or a target such as '2x' with costs='flops'"
        )
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
