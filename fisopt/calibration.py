"""Calibrate: measure where a model's tokens are alike, and make a schedule of token reduction.

The dense model runs over some prompts while every attention's tokens are matched, so that for
each block and step it is known what dropping tokens would lose.  Some of its forward calls are then
run again with one block's queries or values reduced alone, which weighs those losses by the error
of the model's output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils import _pytree as pytree

from fisopt.api import optimize
from fisopt.checked import Checked
from fisopt.errors import InputError, ScheduleError, shown
from fisopt.files import write
from fisopt.passes.schedule import FEATURES, Feature, Measured, Schedule
from fisopt.passes.tiers import ladder
from fisopt.passes.token_reduction import Reduction, TokenReduction
from fisopt.pipelines import modules_of, one_of, transformers_of
from fisopt.reading import check_file
from fisopt.recipe.identity import weights_digest
from fisopt.rewrite.ops.match_tokens import LEVELS
from fisopt.rewrite.partition import Cells
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.runtime.optimized import OptimizedModule

PROBE = 0.5
"""The share at which a block is reduced alone."""


PROBED = 4
"""Steps of the first prompt, spread evenly, whose calls are run again to see errors."""


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
                "calibrate: wanted a target ratio or a target error, one of the two "
                "(--target-ratio, --target-error), in (0, 1); "
                f"got ratio {shown(self.ratio)} and error {shown(self.error)}"
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


@dataclass(frozen=True)
class Call:
    """A forward call of the dense model that was recorded, to be run again.

    Attributes:
        step: its place in a generation.
        branch: its guidance branch.
        inputs: its keyword arguments.
        output: the tensors that it returned.
    """

    step: Step
    branch: str
    inputs: Mapping[str, Any]
    output: list[Tensor]


class _Recorder:
    """Collects what matching measures, and some calls."""

    def __init__(self, module: OptimizedModule, steps: int, seen: Callable[[], None]) -> None:
        self.module, self.steps, self.seen = module, steps, seen
        self.kept = {round(i * (steps - 1) / (PROBED - 1)) for i in range(PROBED)}
        self.sums: dict[Feature, Tensor] = {}
        self.counts = torch.zeros(steps)
        self.calls: list[Call] = []
        self.last = -1
        self.adds = True

    def leave(self, module: object, args: object, kwargs: dict[str, Any], output: Any) -> None:
        """Record the call that has run, if it is to be run again."""
        step, branch = self.module.step, self.module.branch
        if step is None or step.index not in self.kept:
            return
        if all((c.step.index, c.branch) != (step.index, branch) for c in self.calls):
            whole = replace(step, count=self.steps)
            self.calls.append(Call(whole, branch, kwargs, _tensors(output)))

    def __call__(self, gauges: Mapping[str, Tensor]) -> None:
        """Add the measurements of one forward call."""
        step = self.module.step
        if step is None or step.index >= self.steps:
            raise InputError(f"calibrate: told {self.steps} steps, the pipeline is at {step}")
        if self.adds:
            self._add(gauges, step.index)
        if step.index != self.last:
            self.last = step.index
            self.seen()

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


def _block_of(measured: str) -> str:
    """The block that was measured, which follows the pass in the name."""
    return measured.split("/")[1]


def calibrate(
    pipeline: Any,
    generate: Callable[[Any, int], object],
    *,
    prompts: int,
    steps: int,
    target: Target,
    destination_stride: Cells = (2, 2, 2),
    cache_steps: int = 1,
    seed: int = 0,
    component: str | None = None,
    partial: Path | None = None,
    about: Mapping[str, Any] | None = None,
    seen: Callable[[], None] = lambda: None,
) -> Calibration:
    """Measure a pipeline's model and make a schedule for it.

    Args:
        pipeline: a diffusers pipeline; it is left as it was.
        generate: runs the pipeline for the prompt of a number.
        prompts: how many prompts.
        steps: denoising steps of a generation.
        target: what the thresholds are chosen for.
        destination_stride: the cells of the reduction.
        cache_steps: steps for which one match will be used.
        seed: of the choice of destinations; the schedule says it.
        component: of a pipeline with two transformers, the one to measure: each has a schedule of
            its own, in which the steps of the other are like the nearest of its own.
        partial: where to keep what is measured so far; a run that was cut short goes on from it.
        about: what else a measurement depends on, such as the prompts and the size of the video, as
            JSON values.  A run about something else, or of other weights in any part of the
            pipeline, does not go on from ``partial``.
        seen: called after each step.

    Raises:
        InputError: there is no transformer, or two and none is chosen; the counts are not
            positive.
        ScheduleError: what ``partial`` holds is of another run, or is damaged.
        FileError: ``partial`` cannot be read or written.
    """
    if min(prompts, steps) < 1:
        raise InputError(f"calibrate: got {prompts} prompts and {steps} steps, wanted 1 or more")
    name, several = one_of(pipeline, component), len(transformers_of(pipeline)) > 1
    original = getattr(pipeline, name)
    held = "" if partial is None else weights_digest(modules_of(pipeline).values())
    measure = Reduction(0.0, 0.0, destination_stride, "replace", seed, "measure")
    optimize(pipeline, {name: [measure]}, backend="eager")
    module: OptimizedModule = getattr(pipeline, name)
    recorder = _Recorder(module, steps, seen)
    told: dict[str, Any] = {"model": type(module.original).__name__, "steps": steps, "seed": seed}
    told |= {"destination_stride": list(destination_stride), "component": name, **(about or {})}
    told["weights"] = held
    try:
        done = _resume(partial, told, recorder, prompts)
        handle = module.register_forward_hook(recorder.leave, with_kwargs=True)
        with module.watch(recorder):
            for index in [*([0] if done else []), *range(done, prompts)]:
                recorder.last, recorder.adds = -1, index >= done
                generate(pipeline, index)
                if partial is not None and recorder.adds:
                    _keep(partial, told, recorder, index + 1)
        handle.remove()
    finally:
        setattr(pipeline, name, original)
    run = recorder.counts.nonzero().flatten().tolist()
    if not run or (len(run) < steps and not several):
        missing = next(step for step in range(steps) if step not in run)
        raise InputError(f"calibrate: told {steps} steps, the pipeline did not run step {missing}")
    nearest = [min(run, key=lambda own: abs(own - step)) for step in range(steps)]
    means = {f: recorder.sums[f] / recorder.counts[:, None] for f in FEATURES}
    profiles = {f: mean[:, nearest] for f, mean in means.items()}
    base = TokenReduction(destination_stride=destination_stride, cache_steps=cache_steps, seed=seed)
    layout = module.program(recorder.calls[0].inputs, recorder.calls[0].step).layout
    grid = (layout.frames, layout.height, layout.width)
    measured = Measured("", told["model"], grid, prompts, seed, str(target))
    return _choose(module, recorder.calls, profiles, target, base, measured)


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
        alone = Reduction(
            shares["query"], shares["value"], base.destination_stride, base.mode, base.seed
        )
        errors = forward_errors(module, calls, [alone])
        for i, index in enumerate(known):
            mine = [e for e, call in zip(errors, calls, strict=True) if call.step.index == index]
            squared[block, i] = sum(e * e for e in mine) / len(mine)
    lost = profile[:, known, round(PROBE * LEVELS)].clamp(min=1e-12)
    nearest = [min(range(len(known)), key=lambda i: abs(known[i] - s)) for s in range(steps)]
    return (squared / lost)[:, nearest]


def forward_errors(
    module: OptimizedModule, calls: Sequence[Call], passes: Sequence[Pass]
) -> list[float]:
    """Relative L2 error of a module's output under some passes, for each recorded call."""
    fast: OptimizedModule = optimize(module, passes, backend="eager")
    errors = []
    for call in calls:
        said = {"step_index": call.step.index, "num_inference_steps": call.step.count}
        with torch.no_grad(), fast.cache_context(call.branch, **said):
            got = _tensors(fast(**call.inputs))
        pairs = zip(got, call.output, strict=True)
        off = sum(float((a - b).double().square().sum()) for a, b in pairs)
        errors.append(math.sqrt(off / sum(float(b.double().square().sum()) for b in call.output)))
    return errors


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _keep(path: Path, told: Mapping[str, Any], recorder: _Recorder, done: int) -> None:
    """Write what was measured so far, whole or not at all."""
    held: dict[str, Tensor] = {f: recorder.sums[f] for f in FEATURES}
    held["counts"] = recorder.counts
    write(path, save(held, {"run": json.dumps(told), "done": str(done)}))


def _resume(path: Path | None, told: Mapping[str, Any], recorder: _Recorder, prompts: int) -> int:
    """Take over what an earlier run measured; returns how many prompts that was."""
    if path is None or not path.exists():
        return 0
    try:
        check_file(path)
        with safe_open(path, framework="pt") as held:
            said = held.metadata() or {}
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ScheduleError(f"{path} is not complete: {error}; remove it to start anew") from error
    _check_same(path, said.get("run"), told)
    done = said.get("done", "")
    if not done.isdecimal() or int(done) < 1 or not _are_sums(tensors, recorder.steps):
        raise ScheduleError(
            f"{path} is damaged: got {done or 'no number of'} prompts and "
            f"{ {name: list(x.shape) for name, x in tensors.items()} }; remove it to start anew"
        )
    if int(done) > prompts:
        raise ScheduleError(
            f"{path} holds {done} prompts, this run is of {prompts}; give as many, or remove it"
        )
    recorder.counts = tensors.pop("counts")
    recorder.sums = {f: tensors[f] for f in FEATURES}
    return int(done)


def _check_same(path: Path, said: str | None, told: Mapping[str, Any]) -> None:
    """Refuse what is not this run's, by what differs."""
    try:
        there, here = json.loads(said or ""), json.loads(json.dumps(told))
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise ScheduleError(
            f"{path} is not what calibrate keeps; remove it, or write to another place"
        )
    if other := [n for n in {**here, **there} if there.get(n) != here.get(n)]:
        kept, now = ({n: run.get(n) for n in other} for run in (there, here))
        raise ScheduleError(
            f"{path} holds what was measured as {kept}, this run is {now}; remove it, or write to "
            "another place"
        )


def _are_sums(tensors: Mapping[str, Tensor], steps: int) -> bool:
    """Whether tensors are what `_keep` writes of so many steps."""
    shapes = [list(tensors[f].shape) for f in FEATURES if f in tensors]
    return (
        set(tensors) == {*FEATURES, "counts"}
        and list(tensors["counts"].shape) == [steps]
        and shapes[0] == shapes[1] == [*shapes[0][:1], steps, LEVELS + 1]
        and all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in tensors.values())
    )
