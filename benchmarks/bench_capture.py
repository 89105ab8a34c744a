"""Capture published models from the meta device: seconds, memory, attention share, prediction.

    python benchmarks/bench_capture.py [NAME ...]

Every model runs in a process of its own, so that its peak memory is its own.  Nothing is
allocated for weights: the numbers say how long a user waits, not how fast the model runs.  They
are CPU seconds, median of three captures, since wall seconds of a busy machine mislead; beside
them stands what torch.export takes for the same model at fixed sizes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
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
NAMES = [*EXPECTED_SHARE, "mochi-1", "ltx-video"]
PASSES = {
    "stride 2": fisopt.FrameInterleave(stride=2),
    "stride 3": fisopt.FrameInterleave(stride=3),
    "fis-a": fisopt.FrameInterleave(stride=2, blocks="2:-2"),
    "attention, all keys, stride 4": fisopt.FrameInterleave(stride=4, scope="attention", kv="all"),
}


def measure(name: str) -> dict[str, Any]:
    """Capture one model and cost it."""
    model, inputs = fisopt.models.build(name), fisopt.models.example_inputs(name)
    cpus = []
    for _ in range(REPEATS):
        cpu = time.process_time()
        program = fisopt.capture(model, inputs)
        cpus.append(time.process_time() - cpu)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    exported = export_seconds(name, model, inputs)
    cost = fisopt.program_cost(program)
    ratios = {
        label: round(fisopt.predicted_ratio(program, step(program).program), 3)
        for label, step in PASSES.items()
    }
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
    parser.add_argument("--one", action="store_true", help="measure one model here, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.names[0])))
        return
    path = RESULTS / "capture.json"
    rows = {r["model"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in arguments.names:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True
        )
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(rows[name], flush=True)
        write("capture", {"machine": machine(), "rows": list(rows.values())})


if __name__ == "__main__":
    main()
