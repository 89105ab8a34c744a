"""Capture published models from the meta device: seconds, memory, attention share, prediction.

    python benchmarks/bench_capture.py [NAME ...]

Every model runs in a process of its own, so that its peak memory is its own.  Nothing is
allocated for weights: the numbers say how long a user waits, not how fast the model runs.  They
are CPU seconds, median of three captures, since wall seconds of a busy machine mislead; beside
them stands what torch.export takes for the same model at fixed sizes, and what a second process
takes that reads the capture of the first from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import RESULTS, machine, write

import fisopt

REPEATS = 3
# shares that follow from the architectures, in per cent
EXPECTED_SHARE = {
    "wan2.2-a14b": 72,
    "wan2.2-ti2v-5b": 54,
    "hunyuanvideo": 87,
    "hunyuanvideo-1.5": 90,
    "cogvideox-2b": 61,
    "cogvideox-5b": 49,
}
NEWER = [
    *("wan2.1-vace-14b", "wan2.2-animate-14b", "skyreels-v2-14b-540p", "ltx-2", "minimax-h3"),
    *("kandinsky-5-lite", "cosmos-predict2.5-2b", "framepack-i2v", "sana-video-2b-480p", "helios"),
]
NAMES = [*EXPECTED_SHARE, "mochi-1", "ltx-video", *NEWER]
PASSES = {
    "stride 2": fisopt.FrameInterleave(stride=2),
    "stride 3": fisopt.FrameInterleave(stride=3),
    "fis-a": fisopt.FrameInterleave(stride=2, blocks="2:-2"),
    "attention, all keys, stride 4": fisopt.FrameInterleave(stride=4, scope="attention", kv="all"),
}


def start(name: str) -> dict[str, Any]:
    """Capture one model as the first thing in a process."""
    capture = fisopt.capture  # imports what it needs
    model, inputs = fisopt.models.build(name), fisopt.models.example_inputs(name)
    cpu = time.process_time()
    program = capture(model, inputs)
    seconds = time.process_time() - cpu
    return {
        "seconds": seconds,
        "traces": program.source.tracer.traces,
        "notes": [note for note in program.source.notes if "disk" in note],
    }


def cached(name: str) -> dict[str, Any]:
    """CPU seconds of a process that reads what one before it has captured; else why it does not."""
    with TemporaryDirectory() as folder:
        environment = os.environ | {"FISOPT_CACHE": folder}
        _, second = (child("--start", name, environment) for _ in range(2))
    if second["traces"]:
        return {"cached_cpu_seconds": None, "not_cached": second["notes"]}
    return {"cached_cpu_seconds": round(second["seconds"], 2)}


def child(mode: str, name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """What this file prints in another process."""
    command = [sys.executable, __file__, mode, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str) -> dict[str, Any]:
    """Capture one model and cost it."""
    model, inputs = fisopt.models.build(name), fisopt.models.example_inputs(name)
    cpus, capture = [], fisopt.capture
    for _ in range(REPEATS):
        cpu = time.process_time()
        program = capture(model, inputs)
        cpus.append(time.process_time() - cpu)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    exported = export_seconds(name, model, inputs)
    cost = fisopt.program_cost(program)
    ratios = {label: predicted(program, step) for label, step in PASSES.items()}
    return {
        "model": name,
        "grid": str(program.layout),
        "tokens": program.layout.tokens,
        "blocks": len(program.blocks),
        "distinct_blocks": len({str(c.call.target) for c in program.blocks}),
        "cpu_seconds": round(statistics.median(cpus), 1),
        "first_cpu_seconds": round(cpus[0], 1),
        "export_cpu_seconds": round(exported, 1) if exported else None,
        "ratio_to_export": round(statistics.median(cpus) / exported, 3) if exported else None,
        "peak_gib": round(memory, 2),
        "flops": cost.total,
        "attention_share": round(100 * cost.attention_share, 1),
        "expected_share": EXPECTED_SHARE.get(name),
        "predicted_ratio": ratios,
    }


def predicted(program: fisopt.Program, step: fisopt.Pass) -> float | None:
    """What a pass promises, None where it refuses the model."""
    try:
        return round(fisopt.predicted_ratio(program, step(program).program), 3)
    except fisopt.PreconditionError as error:
        print(f"{type(program.source.model).__name__}: {error}", file=sys.stderr)
        return None


def export_seconds(name: str, model: torch.nn.Module, inputs: dict[str, Any]) -> float | None:
    """CPU seconds that torch.export takes for the same model, None where it refuses it."""
    prepare = fisopt.models.spec_of(model).prepare
    traced = model if prepare is None else prepare(model)
    cpu = time.process_time()
    try:
        with torch.no_grad():
            torch.export.export(traced, (), inputs, strict=False).run_decompositions({})
    except Exception as error:  # whatever it refuses is no figure of ours
        print(f"{name}: torch.export: {error}", file=sys.stderr)
        return None
    return time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="published models (default: all)")
    for mode in ("--one", "--start"):
        parser.add_argument(mode, action="store_true", help="one model, here; print JSON")
    parser.add_argument("--cached", action="store_true", help="renew that column only")
    arguments = parser.parse_args()
    if arguments.one or arguments.start:
        print(json.dumps((measure if arguments.one else start)(arguments.names[0])))
        return
    path = RESULTS / "capture.json"
    rows = {r["model"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in arguments.names:
        try:
            if not arguments.cached:
                rows[name] = child("--one", name, os.environ | {"FISOPT_CACHE": "off"})
            rows[name] |= cached(name)
        except subprocess.CalledProcessError as error:  # such as a model that needs a package
            print(f"{name}: {error.stderr.splitlines()[-1]}", file=sys.stderr, flush=True)
            continue
        print(rows[name], flush=True)
        write("capture", {"machine": machine(), "rows": list(rows.values())})


if __name__ == "__main__":
    main()
