"""Capture published models from the meta device: seconds, memory, attention share, prediction.

    python benchmarks/bench_capture.py [NAME ...]

Every model runs in a process of its own, so that its peak memory is its own.  Nothing is
allocated for weights: the numbers say how long a user waits, not how fast the model runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from harness import RESULTS, machine, write

import fisopt

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
    start, cpu = time.perf_counter(), time.process_time()
    program = fisopt.capture(model, inputs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
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
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(memory, 2),
        "flops": cost.total,
        "attention_share": round(100 * cost.attention_share, 1),
        "expected_share": EXPECTED_SHARE.get(name),
        "predicted_ratio": ratios,
    }


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
