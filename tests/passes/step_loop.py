"""A step cache written as a plain loop over a model's layers, and generations to run it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fisopt
from fisopt import OptimizedModule, Pass
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import Form, PlainDiT

GRID = (5, 2, 3)
STEPS = 7
BRANCHES = {"cond": 0.03, "uncond": 0.12}
Calls = Iterator[tuple[int, str, dict[str, Any]]]


def optimized(form: Form, passes: Sequence[Pass], **options: Any) -> OptimizedModule:
    fast: OptimizedModule = fisopt.optimize(
        plain_captured(form)[1], passes, backend="eager", **options
    )
    return fast


def calls(form: Form, seed: int = 0) -> Calls:
    """A generation: a video that drifts, more in one branch than in the other."""
    for step in range(STEPS):
        for branch, drift in BRANCHES.items():
            inputs = plain_dit.inputs(form, *GRID, batch=2)
            generator = torch.Generator().manual_seed(100 * seed + step)
            noise = torch.randn(inputs["video"].shape, generator=generator)
            inputs["video"] = inputs["video"] + drift * (1 + step % 3) * noise
            inputs["time"] = inputs["time"] * (1 - step / STEPS)
            yield step, branch, inputs


def run(fast: OptimizedModule, form: Form, seed: int = 0) -> list[Tensor]:
    results = []
    for step, branch, inputs in calls(form, seed):
        with fast.cache_context(branch, step_index=step, num_inference_steps=STEPS):
            results.append(fast(**inputs)["video"])
    return results


@dataclass
class Loop:
    """The layers of a plain model one by one; those from ``first`` to ``last`` are cached."""

    model: PlainDiT
    first: int = 1
    last: int = 3
    threshold: float | None = None
    reuses: Sequence[int] = range(1, STEPS)
    order: int = 0
    max_run: int = STEPS
    held: dict[str, Any] = field(default_factory=dict)
    ran: list[bool] = field(default_factory=list)

    def __call__(self, step: int, video: Tensor, text: Tensor, time: Tensor) -> Tensor:
        model, held, cross = self.model, self.held, self.model.form.text == "cross"
        x, embedded = model.embed(video), model.time(time[:, None, None])
        x = x if cross else torch.cat([text, x], dim=1)
        angles = torch.arange(video.shape[1])[:, None] * model.frequencies
        start = x
        for layer in model.layers[: self.first]:
            x = layer(x, text, embedded, angles)
        moved, gap = x - start, step - held.get("step", -1)
        reuse = bool(held) and step in self.reuses and gap <= self.max_run
        if reuse and self.threshold is not None:
            change = (moved - held["moved"]).abs().mean() / held["moved"].abs().mean()
            reuse = bool(change <= self.threshold)
        if reuse:
            x = x + held["added"] + gap * held["slope"]
        else:
            before = x
            for layer in model.layers[self.first : self.last]:
                x = layer(x, text, embedded, angles)
            added = x - before
            slope = (added - held["added"]) / gap if held and self.order else 0.0
            held.update(step=step, moved=moved, added=added, slope=slope)
        for layer in model.layers[self.last :]:
            x = layer(x, text, embedded, angles)
        self.ran.append(not reuse)
        return model.unembed(x if cross else x[:, text.shape[1] :])


def wanted(form: Form, seed: int = 0, **options: Any) -> tuple[list[Tensor], list[bool]]:
    """What a plain loop makes of a generation, and at which calls it ran every layer."""
    loops = {branch: Loop(plain_captured(form)[0], **options) for branch in BRANCHES}
    found = [loops[branch](step, **inputs) for step, branch, inputs in calls(form, seed)]
    ran = [ran for pair in zip(*(loop.ran for loop in loops.values()), strict=True) for ran in pair]
    return found, ran
