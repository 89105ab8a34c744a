"""Calibrate: measure where a model's tokens are alike, and make a schedule of token reduction.

The dense model runs over some prompts while every attention's tokens are matched, so that for
each block and step it is known what dropping tokens would lose.  Some of its forward calls are then
run again with one block's queries or values reduced alone, which weighs those losses by the error
of the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fisopt.checked import Checked, checked
from fisopt.errors import InputError, shown
from fisopt.passes.reduction.features import FEATURES, Feature
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.reduced_block import Search
from fisopt.passes.reduction.schedule import Schedule
from fisopt.passes.reduction.tiers import ladder
from fisopt.passes.token_reduction import Reduction, TokenReduction
from fisopt.pipelines import transformers_of
from fisopt.rewrite.ops.match_tokens import LEVELS
from fisopt.rewrite.partition import Cells
from fisopt.runtime.optimized import OptimizedModule
from fisopt.tuning.progress import Progress, sizes
from fisopt.tuning.recorder import Generate, Recorder
from fisopt.tuning.replay import Call, forward_errors, tensors

PROBE = 0.5
"""The share to drop when one block is reduced alone."""


PROBED = 4
"""Number of the first prompt's steps, spread evenly, whose calls run again to measure errors."""


@dataclass(frozen=True)
class Target(metaclass=Checked):
    """What the thresholds are chosen for: one of the two.

    Attributes:
        ratio: mean cost of a visual attention, as a share of the dense one.
        error: relative L2 error of the model's output in one forward call.
    """

    ratio: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.ratio, self.error) if v is not None]
        number = len(given) == 1 and isinstance(given[0], (int, float))
        if not number or not 0 < given[0] < 1:
            raise InputError(
                "calibrate: give a target ratio (--keep) or a target error (--target-error), one "
                "of the two, more than 0 and less than 1; got ratio "
                f"{shown(self.ratio)} and error {shown(self.error)}"
            )

    def __str__(self) -> str:
        return f"cost ratio {self.ratio}" if self.ratio is not None else f"error {self.error}"


@dataclass(frozen=True)
class Calibration:
    """A schedule and what it was made from.

    Attributes:
        schedule: the schedule.
        profiles: for each feature [blocks, steps, 11] what dropping j tenths of the tokens loses.
        cost: mean cost of a visual attention under the schedule, as a share of the dense one.
        error: relative L2 error of one forward call under the schedule.
    """

    schedule: Schedule
    profiles: Mapping[Feature, Tensor]
    cost: float
    error: float


class _Watcher:
    """Adds up what matching measures, and records some calls of the first prompt that runs."""

    def __init__(self, module: OptimizedModule, steps: int) -> None:
        self.module, self.steps = module, steps
        self.kept = {round(i * (steps - 1) / (PROBED - 1)) for i in range(PROBED)}
        self.sums: dict[Feature, Tensor] = {}
        self.counts = torch.zeros(steps)
        self.calls: list[Call] = []
        self.adds = True

    def leave(self, module: object, args: object, kwargs: dict[str, Any], output: Any) -> None:
        """Record the call that has run, if it is to be run again."""
        step, branch = self.module.step, self.module.branch
        if step is None or step.index not in self.kept:
            return
        if all((c.step.index, c.branch) != (step.index, branch) for c in self.calls):
            whole = replace(step, count=self.steps)
            self.calls.append(Call(whole, branch, kwargs, tensors(output)))

    def __call__(self, gauges: Mapping[str, Tensor]) -> None:
        """Add the measurements of one forward call."""
        step = self.module.step
        if step is None or step.index >= self.steps:
            raise InputError(
                f"calibrate: got steps={self.steps}, but the pipeline is at {step}; pass the "
                "number of steps that it runs"
            )
        if self.adds:
            self._add(gauges, step.index)

    def _add(self, gauges: Mapping[str, Tensor], index: int) -> None:
        blocks = list(dict.fromkeys(map(_block_of, gauges)))
        for feature in FEATURES:
            held = self.sums.setdefault(feature, torch.zeros(len(blocks), self.steps, LEVELS + 1))
            mine = {name: g for name, g in gauges.items() if f".{feature}." in name}
            for name, profile in mine.items():
                block = _block_of(name)
                share = sum(_block_of(other) == block for other in mine)
                held[blocks.index(block), index] += profile.cpu() / share
        self.counts[index] += 1

    def state(self) -> dict[str, Any]:
        """What was added up, as JSON values."""
        return {"counts": self.counts.tolist()} | {f: self.sums[f].tolist() for f in FEATURES}

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.counts = torch.tensor(state["counts"])
        self.sums = {f: torch.tensor(state[f]) for f in FEATURES}


def _block_of(measured: str) -> str:
    """The block that was measured, which follows the pass in the name."""
    return measured.split("/")[1]


@checked
def calibrate(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    target_ratio: float | None = None,
    target_error: float | None = None,
    destination_stride: Cells = (2, 2, 2),
    cache_steps: int = 1,
    search: Search = "near",
    seed: int = 0,
    component: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    progress: Path | str | None = None,
    seen: Callable[[int], object] | None = None,
) -> Calibration:
    """Measure a pipeline's model and make a token-reduction schedule for it.

    Args:
        pipeline: a diffusers pipeline; `calibrate` leaves it as it was.
        prompts: texts to generate while measuring, one for each generation.
        steps: denoising steps of a generation.
        target_ratio: target for the mean cost of a visual attention, as a share of the dense one,
            in (0, 1).
        target_error: or target for the relative L2 error of the model's output in one forward call.
        destination_stride: size of the reduction's cells: frames, rows, columns in tokens.
        cache_steps: number of steps that share one match.
        search: where dropped tokens look for their destinations, see `TokenReduction`.
        seed: seed of the first generation's noise and of the choice of destinations; the schedule
            records it.
        component: of a pipeline with two transformers, the one to measure. Each has a schedule of
            its own; steps of the other transformer copy the nearest of its own steps.
        arguments: more arguments of every call of the pipeline, such as its size; JSON values.
        generate: runs the pipeline for the prompt of a given number, if a call with prompt, steps,
            generator and arguments is not enough.
        progress: a file for the measurements so far; an interrupted run resumes from it.
        seen: called with the number of steps done, of ``len(prompts) * steps``.

    Raises:
        InputError: there is no prompt; there is no transformer, or there are two and no
            ``component``; there is not exactly one target, or it is out of reach; the file
            ``progress`` is damaged or belongs to another run: other prompts, sizes, or weights in
            any part of the pipeline.
        OptionError: a count is not positive, or an argument has a wrong type.
        FileError: ``progress`` cannot be read or written.
    """
    target = Target(target_ratio, target_error)
    recorder = Recorder(
        pipeline,
        prompts,
        steps=steps,
        seed=seed,
        component=component,
        arguments=arguments,
        generate=generate,
        seen=seen,
    )
    base = TokenReduction(
        destination_stride=destination_stride, cache_steps=cache_steps, seed=seed, search=search
    )
    stride = base.destination_stride
    about = recorder.about() | {"destination_stride": list(stride), "search": search}
    about["weights"] = recorder.weights() if progress is not None else ""
    kept = Progress(progress, about, partial(_damage, steps))
    measure = Reduction(0.0, 0.0, stride, "replace", seed, "measure", search=search)
    with recorder.watched([measure]) as module:
        watcher = _measure(recorder, module, kept)
    several = len(transformers_of(pipeline)) > 1
    run = watcher.counts.nonzero().flatten().tolist()
    if not run or (len(run) < steps and not several):
        missing = next(step for step in range(steps) if step not in run)
        raise InputError(
            f"calibrate: got steps={steps}, but the pipeline did not run step {missing}; pass the "
            "number of steps that it runs"
        )
    nearest = [min(run, key=lambda own: abs(own - step)) for step in range(steps)]
    means = {f: watcher.sums[f] / watcher.counts[:, None] for f in FEATURES}
    profiles = {f: mean[:, nearest] for f, mean in means.items()}
    layout = module.program(watcher.calls[0].inputs, watcher.calls[0].step).layout
    grid = (layout.frames, layout.height, layout.width)
    measured = Measured("", about["model"], grid, len(prompts), seed, str(target))
    return _choose(module, watcher.calls, profiles, target, base, measured)


def _measure(recorder: Recorder, module: OptimizedModule, kept: Progress) -> _Watcher:
    """Measure every prompt that is not measured yet; the first also runs for its calls."""
    watcher = _Watcher(module, recorder.steps)
    if kept.model:
        watcher.take_over(kept.model)
    handle = module.register_forward_hook(watcher.leave, with_kwargs=True)
    try:
        with module.watch(watcher):
            for index in range(len(recorder.prompts)):
                watcher.adds = index not in kept
                if index == 0 or watcher.adds:
                    recorder.run(index)
                if not watcher.sums:
                    raise InputError(
                        "calibrate: the pipeline did not call its transformer; check that it "
                        "makes a clip, and that component= names the transformer that it calls"
                    )
                if watcher.adds:
                    kept.model = watcher.state()
                    kept.keep(index, None)
    finally:
        handle.remove()
    return watcher


def _damage(steps: int, model: Any, prompts: Mapping[str, Any]) -> str:
    """What of some progress is not as `_Watcher.state` makes it of so many steps."""
    if not prompts and not model:
        return ""
    shapes = {name: sizes(model[name]) for name in ("counts", *FEATURES)}
    blocks = shapes[FEATURES[0]][:1]
    fit = {"counts": [steps]} | {f: [*blocks, steps, LEVELS + 1] for f in FEATURES}
    return "" if shapes == fit and prompts else f"got {shapes} of {len(prompts)} prompts"


def _choose(
    module: OptimizedModule,
    calls: list[Call],
    profiles: Mapping[Feature, Tensor],
    target: Target,
    base: TokenReduction,
    measured: Measured,
) -> Calibration:
    """Climb the ladder of schedules to the target."""
    grid, stride, cache_steps = measured.grid, base.destination_stride, base.cache_steps
    assert grid is not None
    losses = {
        f: profiles[f] * _sensitivity(module, calls, f, profiles[f], base)[..., None]
        for f in FEATURES
    }
    rungs = ladder(losses, grid, stride, cache_steps=cache_steps, measured=measured)

    def cost(rung: Schedule) -> float:
        return rung.attention_cost(grid, stride, cache_steps=cache_steps)

    def error(rung: Schedule) -> float:
        return fmean(forward_errors(module, calls, [replace(base, cache_steps=1, schedule=rung)]))

    if target.ratio is not None:
        chosen = next((r for r in rungs if cost(r) <= target.ratio), None)
        if chosen is None:
            raise InputError(
                f"calibrate: destination_stride={stride} reaches a cost ratio of "
                f"{cost(rungs[-1]):.3f} at most, wanted {target.ratio}; use a larger stride"
            )
        return Calibration(chosen, profiles, cost(chosen), error(chosen))
    low, high = 0, len(rungs) - 1
    assert target.error is not None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if error(rungs[middle]) <= target.error else (low, middle - 1)
    return Calibration(rungs[low], profiles, cost(rungs[low]), error(rungs[low]))


def _sensitivity(
    module: OptimizedModule,
    calls: list[Call],
    feature: Feature,
    profile: Tensor,
    base: TokenReduction,
) -> Tensor:
    """Squared error of the model's output for what each block loses at each step.

    Each block is reduced alone, in the recorded calls; other steps are like the nearest of those.

    Shapes: profile [blocks, steps, 11]; result [blocks, steps].
    """
    blocks, steps = profile.shape[:2]
    known = sorted({call.step.index for call in calls})
    squared = torch.zeros(blocks, len(known))
    for block in range(blocks):
        share = tuple(PROBE if b == block else 0.0 for b in range(blocks))
        shares = {f: share if f == feature else 0.0 for f in FEATURES}
        each = (shares["query"], shares["value"], base.destination_stride)
        alone = Reduction(*each, base.mode, base.seed, search=base.search)
        errors = forward_errors(module, calls, [alone])
        for i, index in enumerate(known):
            mine = [e for e, call in zip(errors, calls, strict=True) if call.step.index == index]
            squared[block, i] = sum(e * e for e in mine) / len(mine)
    lost = profile[:, known, round(PROBE * LEVELS)].clamp(min=1e-12)
    nearest = [min(range(len(known)), key=lambda i: abs(known[i] - s)) for s in range(steps)]
    return (squared / lost)[:, nearest]
