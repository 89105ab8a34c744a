"""The loop of training: AdamW, clipping, an average of the weights; resumable to the bit.

All that is random in a micro-batch comes from a generator that its number and its step's seed, so
that what a run has to keep is the weights, the optimiser and the number of the step, and that two
processes do what one does with twice the micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fisopt import files
from fisopt.checked import Checked, choice, count, flag
from fisopt.distill import ranks
from fisopt.distill.about import differences
from fisopt.distill.optimisers import OPTIMISERS, Optimiser, optimiser, set_rate
from fisopt.distill.seeds import generator
from fisopt.errors import FileError, InputError, OptionError, shown

Losses = Callable[[int, torch.Generator], Iterable[Tensor]]
"""The losses of a micro-batch, given its step and a generator; training minimises their sum."""
Seen = Callable[["Trainer"], object]


@dataclass(frozen=True)
class Training(metaclass=Checked):
    """How a student is trained.

    Attributes:
        steps: number of optimiser steps; None if only ``minutes`` limits the run.
        minutes: time of the whole run, including the time before it was resumed; None if only
            ``steps`` limits it. A run limited by time is not reproducible.
        batch: clips in a micro-batch.
        accumulate: micro-batches for each step and process.
        rate: peak learning rate.
        warmup: steps in which the learning rate rises.
        decay: the last share of the run, in which the learning rate falls to zero.
        clip: largest gradient norm.
        average: decay of the moving average of the weights, 0 to under 1; lower at the start.
        precision: dtype of autocast, such as bfloat16; None computes in the weights' dtype, which
            is float32: weights of fewer bits would hardly change under small learning rates. Its
            range is that of float32: in float16 small gradients become zero, and fisopt scales no
            loss.
        optimiser: "adamw", or "adamw-8bit", whose state takes a quarter of the memory (torchao).
        checkpoints: gradient checkpointing: keep only the blocks' inputs and run the blocks again
            in the backward pass.
        seed: seed of all random numbers.
    """

    steps: int | None = 1000
    minutes: float | None = None
    batch: int = 4
    accumulate: int = 1
    rate: float = 2e-4
    warmup: int = 20
    decay: float = 0.5
    clip: float = 1.0
    average: float = 0.995
    precision: torch.dtype | None = None
    optimiser: Optimiser = "adamw"
    checkpoints: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choice("Training: optimiser", self.optimiser, OPTIMISERS)
        flag("Training: checkpoints", self.checkpoints)
        for name in ("batch", "accumulate"):
            count(f"Training: {name}", getattr(self, name))
        for name in ("warmup", "seed"):
            count(f"Training: {name}", getattr(self, name), 0)
        if self.steps is None and self.minutes is None:
            raise OptionError("Training: wanted steps or minutes, got neither")
        if self.steps is not None:
            count("Training: steps", self.steps)
        if not isinstance(self.average, (int, float)) or not 0 <= self.average < 1:
            raise OptionError(
                f"Training: average: got {shown(self.average)}, wanted a number from 0 to under 1"
            )
        if self.precision is not None and (
            not isinstance(self.precision, torch.dtype) or not self.precision.is_floating_point
        ):
            raise OptionError(
                f"Training: precision: got {shown(self.precision)}, wanted a dtype such as "
                "torch.bfloat16, or None"
            )
        if self.precision is not None and not _spans_float32(self.precision):
            raise OptionError(
                f"Training: precision: got {self.precision}, in which small gradients become zero, "
                "as training scales no loss; wanted torch.bfloat16, or None for float32"
            )
        for name, least in (("minutes", 0), ("rate", 0), ("clip", 0), ("decay", 0)):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, (int, float)) or not value > least or math.isinf(value)
            ):
                raise OptionError(
                    f"Training: {name}: got {shown(value)}, wanted a number over {least}"
                )


class Trainer:
    """Trains parameters on losses.

    Args:
        parameters: by name.
        losses: see `Losses`.
        training: how to train.
        about: what else decides the run, as text by name: `resume` takes no state of another run.

    Raises:
        InputError: there is no parameter, or one has fewer than 32 bits.

    Attributes:
        step: number of steps done.
        seconds: time that they took so far.
        minutes: time limit, see `Training`.
        loss: running mean of the loss.
        average: the moving average of the parameters, by name.
        curve: the record of each step.
        whole: whether no step is half done, as it is where an interrupt comes while weights change;
            only a whole state is worth saving.
        runs: the module in training, for callbacks that run it.
    """

    runs: Any = None

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        losses: Losses,
        training: Training,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.parameters, self.losses, self.training = dict(parameters), losses, training
        self.about = dict(about or {})
        if not self.parameters:
            raise InputError("distill: the model has no parameter to train; load one with weights")
        for name, parameter in self.parameters.items():
            if parameter.dtype.itemsize < 4:
                raise InputError(
                    f"distill: got {name} of {parameter.dtype}, wanted float32: steps of a small "
                    "learning rate round to nothing in fewer than 32 bits; call .float() on the "
                    "transformer and pass Training(precision=torch.bfloat16), or train adapters "
                    "with lora=32"
                )
            parameter.requires_grad_(True)
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = optimiser(training.optimiser, self.parameters.values(), training.rate)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.minutes = training.minutes
        self.curve: list[dict[str, float]] = []
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.whole = True

    def run(self, seen: Seen = lambda _: None) -> None:
        """Train to the end; call ``seen`` after every step.

        Raises:
            InputError: a loss is not finite; the weights stay as before that step.
            RankError: several processes begin at different steps, or with different weights.
        """
        ranks.check_alike(self.step, self.parameters)
        while self.progress < 1:
            self.advance()
            seen(self)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside this context the parameters hold their averages."""
        held = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._take(self.average)
        try:
            yield
        finally:
            self._take(held)

    def finish(self) -> None:
        """Give the parameters their averages as values."""
        self._take(self.average)

    @torch.no_grad()
    def _take(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 to 1."""
        steps = self.training.steps
        shares = [self.step / steps] if steps is not None else []
        if self.minutes is not None:
            shares.append(self.seconds / 60 / self.minutes)
        return max(shares)

    def advance(self) -> None:
        """Make one step, and time it."""
        told, began = self.training, time.perf_counter()
        total = torch.zeros((), device=self.device)
        whole = told.accumulate * ranks.count()
        for index in range(told.accumulate):
            number = ranks.own() * told.accumulate + index
            draws = generator(self.device, told.seed, self.step, number)
            for loss in self.losses(self.step, draws):
                (loss / whole).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / whole
        if ranks.count() > 1:
            ranks.add([total, *ranks.gradients(self.parameters.values())])
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), told.clip)
        value = float(total)
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            self.optimizer.zero_grad()
            raise InputError(
                f"distill: the loss is {value:g} at step {self.step} and its gradient "
                f"{float(norm):g}; the weights stay as before it; use a lower rate, got "
                f"{told.rate:g}"
            )
        self.whole = False
        set_rate(self.optimizer, told.rate * self._rate())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        keep = min(told.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)
        share = max(0.02, 1 / self.step)
        self.loss = value if self.step == 1 else self.loss + share * (value - self.loss)
        seconds = self.seconds + time.perf_counter() - began
        self.seconds = ranks.first(seconds, self.device)  # one clock: all end with the same step
        self.curve.append({"step": self.step, "loss": self.loss, "seconds": self.seconds})
        self.whole = True

    def _rate(self) -> float:
        told = self.training
        rise = (self.step + 1) / (told.warmup + 1)
        return min(1.0, rise, max(0.0, 1 - self.progress) / told.decay)

    def save(self, path: Path) -> None:
        """Write the state for `resume`; among several processes only the first writes.

        Raises:
            FileError: the state cannot be written; existing files stay unchanged.
        """
        if ranks.own():
            return
        state = {
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "curve": self.curve,
            "about": self._about(),
        }
        with files.written(path, force=True, error=FileError) as beside:
            torch.save(state, beside)

    def resume(self, path: Path) -> bool:
        """Continue from the state that `save` wrote, if there is one.

        Raises:
            InputError: the state belongs to another run, or is damaged.
        """
        if not path.is_file():
            return False
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            about = state["about"]
        except Exception as error:
            raise InputError(
                f"{path} is not the state of a training run: {error}; choose another folder, or "
                "delete this one"
            ) from error
        if about != self._about():
            raise InputError(
                f"{path} is the state of another run: {differences(about, self._about())}; choose "
                "another folder, or delete this one"
            )
        self._take(state["parameters"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        self.curve = state["curve"]
        return True

    def _about(self) -> dict[str, str]:
        told = {
            n: str(v) for n, v in asdict(self.training).items() if n not in ("steps", "minutes")
        }
        shapes = {n: list(p.shape) for n, p in self.parameters.items()}
        return {**told, "shapes": str(shapes), "processes": str(ranks.count()), **self.about}


def _spans_float32(dtype: torch.dtype) -> bool:
    """Whether a dtype holds numbers as small as float32 does, of fewer bits or not."""
    return torch.finfo(dtype).tiny <= torch.finfo(torch.float32).tiny
