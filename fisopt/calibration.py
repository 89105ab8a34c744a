"""Calibrate: measure where a model's tokens are alike, and make a schedule of token reduction.

The dense model runs over some prompts while every attention's tokens are matched, so that for
each block and step it is known what dropping tokens would lose.  Two more forward calls weigh what
queries lose against what values lose by the error of the model's output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from fisopt.api import optimize
from fisopt.errors import InputError, ScheduleError
from fisopt.passes.schedule import FEATURES, Feature, Measured, Schedule
from fisopt.passes.tiers import ladder
from fisopt.passes.token_reduction import Reduction, TokenReduction
from fisopt.rewrite.ops.match_tokens import LEVELS
from fisopt.rewrite.partition import Cells
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.runtime.optimized import OptimizedModule

PROBE = 0.5
"""The share at which the two features are weighed."""


CALLS = 6
"""Forward calls that are recorded, of the first, middle and last step of the first prompt."""


@dataclass(frozen=True)
class Target:
    """What the thresholds are chosen for: one of the two.

    Attributes:
        ratio: mean cost of a visual attention, as a share of the dense one.
        error: relative L2 error of the model's output in one forward call.
    """

    ratio: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.ratio, self.error) if v is not None]
        if len(given) != 1 or not 0 < given[0] < 1:
            raise InputError(
                f"calibrate: wanted a target ratio or a target error, one of the two, in (0, 1); "
                f"got ratio {self.ratio} and error {self.error}"
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
class _Call:
    """A forward call of the dense model that was recorded, to be run again."""

    step: Step
    branch: str
    inputs: Mapping[str, Any]


class _Recorder:
    """Collects what matching measures, and some calls."""

    def __init__(self, steps: int, seen: Callable[[], None]) -> None:
        self.steps, self.seen = steps, seen
        self.module: OptimizedModule | None = None
        self.kept = {0, steps // 2, steps - 1}
        self.sums: dict[Feature, Tensor] = {}
        self.counts = torch.zeros(steps)
        self.calls: list[_Call] = []
        self.inputs: dict[str, Any] = {}
        self.last = -1
        self.adds = True

    def enter(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        """Remember the inputs of the call that is about to run."""
        self.inputs = kwargs

    def __call__(self, gauges: Mapping[str, Tensor]) -> None:
        """Add the measurements of one forward call."""
        assert self.module is not None
        step = self.module.step
        if step is None or step.index >= self.steps:
            raise InputError(f"calibrate: told {self.steps} steps, the pipeline is at {step}")
        if self.adds:
            self._add(gauges, step.index)
        if step.index in self.kept and len(self.calls) < CALLS:
            whole = replace(step, count=self.steps)
            self.calls.append(_Call(whole, self.module.branch, self.inputs))
        if step.index != self.last:
            self.last = step.index
            self.seen()

    def _add(self, gauges: Mapping[str, Tensor], index: int) -> None:
        blocks = list(dict.fromkeys(name.split("/")[0] for name in gauges))
        for feature in FEATURES:
            held = self.sums.setdefault(feature, torch.zeros(len(blocks), self.steps, LEVELS + 1))
            mine = {name: g for name, g in gauges.items() if f".{feature}." in name}
            for name, profile in mine.items():
                block = name.split("/")[0]
                share = sum(other.split("/")[0] == block for other in mine)
                held[blocks.index(block), index] += profile.cpu() / share
        self.counts[index] += 1


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
    partial: Path | None = None,
    seen: Callable[[], None] = lambda: None,
) -> Calibration:
    """Measure a pipeline's model and make a schedule for it.

    Args:
        pipeline: a pipeline with one ``transformer``; it is left as it was.
        generate: runs the pipeline for the prompt of a number.
        prompts: how many prompts.
        steps: denoising steps of a generation.
        target: what the thresholds are chosen for.
        destination_stride: the cells of the reduction.
        cache_steps: steps for which one match will be used.
        seed: of the choice of destinations; the schedule says it.
        partial: where to keep what is measured so far; a run that was cut short goes on from it.
        seen: called after each step.

    Raises:
        InputError: there is no single transformer, or the counts are not positive.
        ScheduleError: what ``partial`` holds is of another run.
    """
    if min(prompts, steps) < 1:
        raise InputError(f"calibrate: got {prompts} prompts and {steps} steps, wanted 1 or more")
    original = getattr(pipeline, "transformer", None)
    if original is None or getattr(pipeline, "transformer_2", None) is not None:
        raise InputError(
            f"calibrate: {type(pipeline).__name__} has no `transformer`, or two; a schedule is of "
            "one model"
        )
    recorder = _Recorder(steps, seen)
    measure = Reduction(0.0, 0.0, destination_stride, "replace", seed, "measure")
    optimize(pipeline, [measure], backend="eager")
    module: OptimizedModule = pipeline.transformer
    recorder.module = module
    told: dict[str, Any] = {"model": type(module.original).__name__, "steps": steps, "seed": seed}
    told["destination_stride"] = list(destination_stride)
    done = _resume(partial, told, recorder)
    try:
        handle = module.register_forward_pre_hook(recorder.enter, with_kwargs=True)
        with module.watch(recorder):
            for index in [*([0] if done else []), *range(done, prompts)]:
                recorder.last, recorder.adds = -1, index >= done
                generate(pipeline, index)
                if partial is not None and recorder.adds:
                    _keep(partial, told, recorder, index + 1)
        handle.remove()
    finally:
        pipeline.transformer = original
    if not recorder.counts.all():
        missing = int((recorder.counts == 0).nonzero()[0])
        raise InputError(f"calibrate: told {steps} steps, the pipeline did not run step {missing}")
    profiles = {f: recorder.sums[f] / recorder.counts[:, None] for f in FEATURES}
    base = TokenReduction(destination_stride=destination_stride, cache_steps=cache_steps, seed=seed)
    layout = module.program(recorder.calls[0].inputs, recorder.calls[0].step).layout
    grid = (layout.frames, layout.height, layout.width)
    measured = Measured("", told["model"], grid, prompts, seed, str(target))
    return _choose(module, recorder.calls, profiles, target, base, measured)


def _choose(
    module: OptimizedModule,
    calls: list[_Call],
    profiles: Mapping[Feature, Tensor],
    target: Target,
    base: TokenReduction,
    measured: Measured,
) -> Calibration:
    """Climb the ladder of schedules to the target."""
    grid, stride, cache_steps = measured.grid, base.destination_stride, base.cache_steps
    assert grid is not None
    weights: dict[Feature, float] = {}
    for feature in FEATURES:
        shares = {f: PROBE if f == feature else 0.0 for f in FEATURES}
        probe = replace(base, cache_steps=1, query=shares["query"], value=shares["value"])
        loss = max(float(profiles[feature][..., round(PROBE * LEVELS)].mean()), 1e-12)
        weights[feature] = forward_error(module, calls, [probe]) ** 2 / loss
    rungs = ladder(profiles, weights, grid, stride, cache_steps=cache_steps, measured=measured)

    def cost(rung: Schedule) -> float:
        return rung.attention_cost(grid, stride, cache_steps=cache_steps)

    def error(rung: Schedule) -> float:
        return forward_error(module, calls, [replace(base, cache_steps=1, schedule=rung)])

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


def forward_error(module: OptimizedModule, calls: list[_Call], passes: list[Pass]) -> float:
    """Mean relative L2 error of a module's output under some passes, over recorded calls."""
    fast: OptimizedModule = optimize(module, passes, backend="eager")
    errors = []
    for call in calls:
        said = {"step_index": call.step.index, "num_inference_steps": call.step.count}
        with torch.no_grad(), fast.cache_context(call.branch, **said):
            got, want = _tensors(fast(**call.inputs)), _tensors(module.original(**call.inputs))
        off = sum(float((a - b).double().square().sum()) for a, b in zip(got, want, strict=True))
        errors.append(math.sqrt(off / sum(float(b.double().square().sum()) for b in want)))
    return sum(errors) / len(errors)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _keep(path: Path, told: Mapping[str, Any], recorder: _Recorder, done: int) -> None:
    """Write what was measured so far; the file takes its place when it is complete."""
    beside = path.with_name(path.name + ".new")
    held: dict[str, Tensor] = {f: recorder.sums[f] for f in FEATURES}
    held["counts"] = recorder.counts
    save_file(held, beside, {"run": json.dumps(told), "done": str(done)})
    beside.replace(path)


def _resume(path: Path | None, told: Mapping[str, Any], recorder: _Recorder) -> int:
    """Take over what an earlier run measured; returns how many prompts that was."""
    if path is None or not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as held:
            said = held.metadata() or {}
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ScheduleError(f"{path} is not complete: {error}; remove it to start anew") from error
    if said.get("run") != json.dumps(told):
        raise ScheduleError(
            f"{path} holds what was measured as {said.get('run')}, this run is {json.dumps(told)}; "
            "remove it, or write to another place"
        )
    recorder.counts = tensors.pop("counts")
    recorder.sums = {f: tensors[f] for f in FEATURES}
    return int(said["done"])
