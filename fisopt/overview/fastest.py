"""The time of something that runs on a device: that of its fastest run."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch


def fastest(
    run: Callable[[], object],
    device: torch.device,
    *,
    warm: int = 0,
    least: int = 5,
    seconds: float = 0.0,
) -> float:
    """Seconds of the fastest of several runs, each waited for.

    Args:
        run: what is timed.
        device: that it runs on.
        warm: runs before the first that is timed.
        least: so many runs at least.
        seconds: and for so long.
    """
    found: list[float] = []
    for _ in range(warm):
        run()
    while len(found) < least or sum(found) < seconds:
        _wait(device)
        began = perf_counter()
        run()
        _wait(device)
        found.append(perf_counter() - began)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
