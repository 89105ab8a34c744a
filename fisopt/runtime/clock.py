"""What ran at each forward call and how long it took, noted without waiting for a device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter
from typing import Any

import torch

from fisopt.rewrite.pass_base import Step
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.runtime.branches import TIMESTEPS
from fisopt.runtime.report import Made

CALLS = 1024
"""So many calls of a module are remembered."""


@dataclass(slots=True, eq=False)
class Mark:
    """A moment: of the processor, and where a GPU computes of the stream that does."""

    seconds: float
    event: Any = None

    @staticmethod
    def now(inputs: Inputs) -> Mark:
        """The moment at which work on some inputs is given out, or has been."""
        device = next((x.device for x in inputs.leaves if isinstance(x, torch.Tensor)), None)
        if device is None or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return Mark(perf_counter())
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return Mark(perf_counter(), event)

    def until(self, other: Mark) -> float:
        """Milliseconds to a later moment; waits for it."""
        if self.event is None or other.event is None:
            return 1e3 * (other.seconds - self.seconds)
        other.event.synchronize()
        return float(self.event.elapsed_time(other.event))


@dataclass(slots=True, eq=False)
class Call:
    """A forward call.

    Attributes:
        made: what ran.
        branch: the guidance branch, as the pipeline names it.
        step: its denoising step, None if no pass asked for it.
        noise: its timestep, a number or a tensor of one; None if it has none.
        compiled: whether what ran was compiled for it, or captured.
        began: when it began.
        ended: when it ended.
        thread: who called.
    """

    made: Made
    branch: str
    step: Step | None
    noise: Any
    compiled: bool
    began: Mark
    ended: Mark
    thread: int

    @property
    def milliseconds(self) -> float | None:
        """How long it took; None if that was mostly capturing or compiling."""
        return None if self.compiled else self.began.until(self.ended)

    @property
    def time(self) -> float | None:
        """Its timestep."""
        known = self.noise is not None and not getattr(self.noise, "is_meta", False)
        return float(self.noise) if known else None


class Clock:
    """Notes the newest calls of one module; threads may share it."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=CALLS)

    @property
    def calls(self) -> list[Call]:
        """The calls, oldest first."""
        return list(self._calls)

    def note(
        self,
        inputs: Inputs,
        began: Mark,
        made: Made,
        branch: str,
        step: Step | None,
        compiled: bool,
    ) -> None:
        """Take note of a call that has been given out."""
        ended, noise = Mark.now(inputs), _noise(inputs)
        call = Call(made, branch, step, noise, compiled, began, ended, get_ident())
        self._calls.append(call)


def _noise(inputs: Inputs) -> Any:
    """The timestep of a call: the largest, as a conditioned frame has none."""
    place = next((i for i, name in enumerate(inputs.names) if name in TIMESTEPS), None)
    value = None if place is None else inputs.leaves[place]
    if not isinstance(value, torch.Tensor):
        return value if isinstance(value, (int, float)) else None
    if not value.numel():
        return None
    return value.max().item() if value.device.type == "cpu" else value.detach().max()
