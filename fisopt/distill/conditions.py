"""What a pipeline tells its transformer beside latents and time: recorded, one row a prompt.

The pipeline runs as it is, with a transformer that notes its arguments and returns zeros, so that
text encoders, image conditions and sizes are those of a generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.distill.levels import Levels, levels_of
from fisopt.errors import InputError
from fisopt.rewrite.tracing.inputs import bind
from fisopt.tuning.recorder import fitted

LATENTS, TIME = "hidden_states", "timestep"
"""Names under which the models of diffusers take both."""
ROUNDED = 0.01
"""A pipeline that rounds the time to its dtype tells it up to this share."""
Row = dict[str, Any]
Recorded = Callable[[int], object]


@dataclass(frozen=True)
class Conditions:
    """The arguments of the transformer for some prompts.

    Attributes:
        branches: those of the conditional branch, and of the unconditional one where there is
            guidance; tensors that ``per_prompt`` names have one row a prompt.
        per_prompt: names of the arguments that differ from prompt to prompt.
        beside: what is joined to the latents, [prompts or 1, ...]; None if nothing is.
        joined: the dimension in which it is joined, which the latents have fewer of.
        shape: of the latents of one prompt, as the model returns them.
        time: the model's time over the scheduler's, with one row a prompt.
        time_type: the dtype in which the model is told the time.
        prompts: how many.
    """

    branches: tuple[Row, ...]
    per_prompt: frozenset[str]
    beside: Tensor | None
    joined: int
    shape: tuple[int, ...]
    time: Tensor
    time_type: torch.dtype
    prompts: int

    def take(self, rows: Tensor, guided: bool) -> Conditions:
        """The conditions of some prompts, with both branches one below the other if guided.

        Raises:
            InputError: it is guided, and the pipeline ran without guidance.
        """
        if guided and len(self.branches) == 1:
            raise InputError(
                "distill: got guidance, but the pipeline called its transformer once per step; "
                "pass the arguments that turn guidance on, such as guidance_scale, or guidance=1"
            )
        used = self.branches[: 1 + guided]
        joined = dict(used[0])
        for name in self.per_prompt:
            joined[name] = torch.cat([branch[name][rows] for branch in used])
        beside = self.beside
        if beside is not None:
            beside = (
                beside[rows] if len(beside) > 1 else beside.expand(len(rows), *beside.shape[1:])
            )
            beside = torch.cat([beside] * len(used))
        time = torch.cat([self.time[rows]] * len(used))
        return replace(self, branches=(joined,), beside=beside, time=time, prompts=len(rows))

    def to(self, device: torch.device | str) -> Conditions:
        """The same on a device."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        branches = tuple({n: moved(v) for n, v in branch.items()} for branch in self.branches)
        beside, time = moved(self.beside), moved(self.time)
        return replace(self, branches=branches, beside=beside, time=time)


def record(
    pipeline: Any,
    model: nn.Module,
    prompts: Sequence[str],
    steps: int,
    arguments: Mapping[str, Any] | None = None,
    batch: int = 1,
    seen: Recorded = lambda _: None,
) -> tuple[Conditions, Levels]:
    """Run a pipeline for some prompts without its transformer.

    Args:
        pipeline: a diffusers pipeline.
        model: its transformer.
        prompts: texts.
        steps: of its sampler.
        arguments: more arguments of every call.
        batch: prompts of one call, for a pipeline that takes lists.
        seen: called after every call with the number of prompts so far.

    Returns:
        What the transformer is told, and the levels of the sampler.

    Raises:
        InputError: there is no prompt; the transformer is called in another way than once or
            twice a step; the shapes of two prompts differ.
    """
    if not prompts:
        raise InputError("distill: got 0 prompts, wanted 1 or more")
    found: list[Conditions] = []
    with _noting(model) as noted:
        for first in range(0, len(prompts), batch):
            some = list(prompts[first : first + batch])
            noted.calls.clear()
            given = {**(arguments or {}), "prompt": some if batch > 1 else some[0]}
            given |= {"num_inference_steps": steps, "output_type": "latent"}
            pipeline(**fitted(pipeline, given))
            found.append(_read(noted, len(some), steps, pipeline.scheduler))
            seen(first + len(some))
    return _stacked(found), levels_of(pipeline.scheduler)


class _Noted:
    """The calls of a transformer, whose first one runs to show what it returns."""

    def __init__(self) -> None:
        self.calls: list[Row] = []
        self.output: Any = None


@contextmanager
def _noting(model: nn.Module) -> Iterator[_Noted]:
    noted, run, before = _Noted(), model.forward, vars(model).get("forward")

    @wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(model, args, kwargs)
        noted.calls.append(arguments)
        if noted.output is None:
            with torch.no_grad():  # one row of the batch, which shows as much
                noted.output = first_of(run(**_rows(arguments, len(arguments[LATENTS]), 0, 1)))
        latents = arguments[LATENTS]
        zeros = noted.output.new_zeros(len(latents), *noted.output.shape[1:])
        return (zeros,) if arguments.get("return_dict") is False else _Sample(zeros)

    model.forward = forward
    try:
        yield noted
    finally:
        del model.forward
        if before is not None:
            model.forward = before


class _Sample(dict[str, Tensor]):
    """What diffusers' models return, as far as pipelines read it."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__(sample=sample)
        self.sample = sample

    def __getitem__(self, key: Any) -> Tensor:
        return self.sample


def first_of(output: Any) -> Tensor:
    """The tensor that a model predicts, in what it returns."""
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _read(noted: _Noted, prompts: int, steps: int, scheduler: Any) -> Conditions:
    """The first step's arguments, by branch."""
    calls = noted.calls[: len(noted.calls) // steps]
    if len(noted.calls) % steps or not calls or LATENTS not in calls[0] or TIME not in calls[0]:
        raise InputError(
            f"distill: the pipeline called its transformer {len(noted.calls)} times in {steps} "
            f"steps; wanted the same number in each, with {LATENTS} and {TIME}"
        )
    rows = [len(call[LATENTS]) // prompts for call in calls]
    if rows == [1]:
        halves = [calls[0]]
    elif rows == [1, 1]:
        halves = calls
    elif rows == [2]:
        halves = [_cut(calls[0], prompts, 1), _cut(calls[0], prompts, 0)]
    else:
        raise InputError(
            f"distill: the pipeline called its transformer with {rows} rows a prompt in a step; "
            "wanted one call, or one for each of two guidance branches, or both as one"
        )
    times = [float(t) for t in scheduler.timesteps]
    late = max(range(steps), key=lambda step: abs(times[step]))
    told = noted.calls[late * len(calls)][TIME]
    told = told[:prompts] if told.ndim and len(told) > 1 else told.expand(prompts)
    return conditions_of(halves, noted.output.shape[1:], told, times[late])


def _cut(call: Row, prompts: int, part: int) -> Row:
    """One half of the rows; pipelines put the branch without the prompt first."""
    return _rows(call, 2 * prompts, part * prompts, (part + 1) * prompts)


def _rows(call: Row, count: int, first: int, end: int) -> Row:
    """Some of the rows of a call of so many."""
    return {n: v[first:end] if _is_row(v, count) else v for n, v in call.items()}


def _is_row(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def conditions_of(
    calls: Sequence[Row], returned: Sequence[int], told: Tensor, time: float
) -> Conditions:
    """The conditions that forward calls show.

    Args:
        calls: the arguments of one call of each branch, one row a prompt.
        returned: the shape of what the model returns for a row.
        told: the time that it was told at some step, [prompts, ...].
        time: what the scheduler calls that step.
    """
    prompts, ratio = len(calls[0][LATENTS]), told.float() / (time or 1.0)
    ratio = torch.where((ratio - 1).abs() < ROUNDED, 1.0, ratio)
    taken = calls[0][LATENTS]
    differ = [
        d for d, (a, b) in enumerate(zip(taken.shape[1:], returned, strict=True), 1) if a != b
    ]
    joined, shape, beside = (differ or [0])[0], tuple(returned), None
    if differ and taken.shape[joined] > returned[joined - 1]:
        beside = taken.narrow(joined, shape[joined - 1], taken.shape[joined] - shape[joined - 1])
    elif differ:  # the model also returns a variance
        shape = tuple(taken.shape[1:])
    rest = tuple({n: v for n, v in c.items() if n not in (LATENTS, TIME)} for c in calls)
    per_prompt = frozenset(n for n, v in rest[0].items() if _is_row(v, prompts))
    return Conditions(rest, per_prompt, beside, joined, shape, ratio, told.dtype, prompts)


def _stacked(found: Sequence[Conditions]) -> Conditions:
    first = found[0]
    try:
        branches = tuple(
            {
                name: torch.cat([c.branches[b][name] for c in found])
                if name in first.per_prompt
                else value
                for name, value in branch.items()
            }
            for b, branch in enumerate(first.branches)
        )
        beside = None if first.beside is None else _same([c.beside for c in found])
        time = torch.cat([c.time for c in found])
    except (RuntimeError, KeyError, IndexError) as error:
        raise InputError(
            f"distill: the transformer's inputs differ in shape between prompts ({error}); wanted "
            "prompts of one size, padded as the pipeline does"
        ) from error
    total = sum(c.prompts for c in found)
    return replace(first, branches=branches, beside=beside, time=time, prompts=total)


def _same(parts: Sequence[Any]) -> Tensor:
    """All rows, or one where they are all alike."""
    one = parts[0][:1]
    alike = all(torch.equal(part, one.expand_as(part)) for part in parts)
    return one.clone() if alike else torch.cat(list(parts))
