"""Where something was measured: hardware, threads, versions."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from fisopt.pipelines import transformers_of
from fisopt.versions import versions


def environment(pipeline: Any = None) -> dict[str, str]:
    """Hardware and versions by name, with the model of a pipeline."""
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        **versions("triton", "torchmetrics", "scipy"),
    }
    if pipeline is not None:
        found["pipeline"] = type(pipeline).__name__
        for name, module in transformers_of(pipeline).items():
            weight = next(module.parameters(), torch.empty(0))
            kind = str(weight.dtype).removeprefix("torch.")
            found[name] = f"{type(module).__name__}, {kind} on {weight.device}"
    return found


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
