"""How long compiling takes: two blocks against forty, and a first process against a second.

    python benchmarks/bench_compile.py [--depths 2 40]

Every measurement is a process of its own: a small Wan of some depth is captured, rewritten
(every block sparse, stride 2) and compiled by Inductor on this machine.  The first process of a
depth starts with empty caches, the second finds what the first left on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from harness import machine, write

import fisopt

SIZE = {"height": 64, "width": 96, "num_frames": 17}


def measure(depth: int) -> dict[str, Any]:
    """Capture and compile a model of some depth; seconds of each."""
    config = {"num_layers": depth, "num_attention_heads": 2, "attention_head_dim": 24}
    config |= {"ffn_dim": 64, "text_dim": 16, "freq_dim": 32}
    family = fisopt.models.find_family("wan2.1-1.3b")
    model = family.transformer(**config).eval().requires_grad_(False)
    inputs = fisopt.models.example_inputs(model, **SIZE)
    start = time.perf_counter()
    optimized = fisopt.optimize(model, [fisopt.FrameInterleave(blocks=":")], inputs)
    captured, cpu = time.perf_counter(), _cpu()
    optimized.warmup(inputs, progress=False)
    done = time.perf_counter()
    return {
        "blocks": depth,
        "stages": optimized.report.variants[0].stages,
        "capture_seconds": round(captured - start, 2),
        "compile_seconds": round(done - captured, 2),
        "compile_cpu_seconds": round(_cpu() - cpu, 2),
    }


def _cpu() -> float:
    """CPU seconds of this process and of the compilers that it started."""
    used = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def run(depth: int, cache: str) -> dict[str, Any]:
    """Measure in a process of its own that has its caches in a folder."""
    places = {"TORCHINDUCTOR_CACHE_DIR": cache, "FISOPT_CACHE": cache}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(depth)],
        env={**os.environ, **places, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--depths", type=int, nargs=2, default=(2, 40), help="blocks")
    parser.add_argument("--one", type=int, help="measure one depth here, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = []
    for depth in arguments.depths:
        with tempfile.TemporaryDirectory() as cache:
            rows += [{"process": name, **run(depth, cache)} for name in ("first", "second")]
        print(rows[-2], rows[-1], sep="\n", flush=True)
    ratios = {
        key: round(rows[2][key] / rows[0][key], 2)
        for key in ("compile_seconds", "compile_cpu_seconds")
    }
    print(f"{arguments.depths[1]} blocks over {arguments.depths[0]}, cold: {ratios}")
    write("compile", {"machine": machine(), "rows": rows, "depth_ratio": ratios})


if __name__ == "__main__":
    main()
