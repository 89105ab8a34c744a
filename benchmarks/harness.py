"""What every benchmark shares: the machine's name, paired timing, and results written whole."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

import fisopt
from fisopt.files import write as write_file

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Versions and hardware that a number depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "fisopt": fisopt.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time several calls in turns, so that a change of load meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(base: list[float], other: list[float]) -> float:
    """Median over rounds of base / other: how much faster ``other`` is."""
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def write(name: str, result: Any) -> Path:
    """Write a result as JSON beside the others, whole or not at all."""
    return write_file(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")


def write_part(name: str, part: str, result: Any) -> Path:
    """Write a result as one part of a file that several benchmarks fill."""
    path = RESULTS / f"{name}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    return write(name, {**held, part: result})
