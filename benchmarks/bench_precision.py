"""Quality of linears in FP8 on the testbed, alone and with frame sparsity.

    python benchmarks/bench_precision.py [--clips 8] [--steps 4]

The numbers are those of e4m3 with a scale a token and an output channel, computed in float32, so
that quality is that of a GPU and speed says nothing.  The same prompts and noise as the dense clips
of the model: PSNR and SSIM against them, the checker's score, and the error of one forward call.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from bench_quality import Bench, ratio_of, scores
from harness import machine, write
from tqdm import tqdm

import fisopt

PASSES: dict[str, tuple[fisopt.Pass, ...]] = {
    "dense": (),
    "stride 2": (fisopt.FrameInterleave(stride=2),),
    "stride 3": (fisopt.FrameInterleave(stride=3),),
}


def row(bench: Bench, name: str, linear: Any, steps: int) -> dict[str, Any]:
    """Measure one list of passes with linears in one precision."""
    optimised = fisopt.optimize(bench.eager, PASSES[name], backend="eager", linear=linear)
    clips, _ = bench.generate(optimised, steps)
    with torch.no_grad():
        error = bench.one_forward(optimised)
    said = [str(c) for c in optimised.report.variants[0].choices if c.what == "linear"]
    return {
        "passes": name,
        "linear": linear,
        "steps": steps,
        **scores(clips, bench.dense[steps][0], bench.prompts),
        "one_forward_l2": error,
        "flops_ratio": ratio_of(optimised),
        "lowering": said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4])
    arguments = parser.parse_args()
    bench = Bench(arguments.clips, arguments.steps)
    todo = [
        (name, linear, steps)
        for steps in arguments.steps
        for name in PASSES
        for linear in ("model", "fp8-simulated")
    ]
    rows: list[dict[str, Any]] = []
    for name, linear, steps in tqdm(todo, desc="precision"):
        rows.append(row(bench, name, linear, steps))
        write(
            "precision",
            {
                "machine": machine(),
                "clips": arguments.clips,
                "what": "bundled testbed, guidance 2.0, Euler steps; e4m3 simulated in float32",
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
