"""Searched mask tables against one mask for every block, at equal cost, on the testbed.

    python benchmarks/bench_mask_search.py [--clips 6] [--steps 4 25] [--k 2 4 8]

Masks are measured on prompts of their own; the clips are of other prompts and noise.  For every k
the searched table costs no more FLOPs than k:(F-k) in every block.  Reported are the one-forward
error (relative L2 of the model's result at the dense trajectory's inputs, mean over steps), PSNR
and SSIM against the dense clips, and the checker's score.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from bench_quality import scores
from harness import machine, write
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import load_testbed, sample_prompts
from fisopt.search import Calls, Measurements, joint_error, tile_candidates

MEASURED = 4
"""Steps of a generation that are measured, and checked, evenly spread."""


class Bench:
    """The testbed with what it was called with."""

    def __init__(self, clips: int) -> None:
        self.pipe: Any = load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.model = self.pipe.transformer.eval()
        self.prompts = [str(p) for p in sample_prompts(clips, seed=11)]
        self.calibration = [str(p) for p in sample_prompts(2, seed=1)]
        self.eager: Any = fisopt.optimize(self.model, [], backend="eager")

    def generate(self, transformer: Any, steps: int, prompts: list[str], seed: int) -> Any:
        """Clips from fixed noise, and the arguments of some of the forward calls."""
        self.pipe.transformer = transformer
        calls: list[dict[str, Any]] = []
        handle = transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
        )
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        frames = self.pipe(prompts, num_inference_steps=steps, generator=generators).frames
        handle.remove()
        branches = len(calls) // steps
        kept = {round(i * (steps - 1) / (MEASURED - 1)) for i in range(MEASURED)}
        return frames, [call for i, call in enumerate(calls) if i // branches in kept]

    def measure(self, steps: int) -> Measurements:
        """What every candidate does to every block on the calibration prompts."""
        _, inputs = self.generate(self.eager, steps, self.calibration, seed=500)
        calls = Calls.of(self.eager.program(inputs[0]), tile_candidates(16))
        found = Measurements.of(calls)
        found.errors = [calls.errors(call) for call in tqdm(inputs, desc=f"measure, {steps} steps")]
        return found

    def rows(self, steps: int, ks: list[int]) -> list[dict[str, Any]]:
        """Uniform masks and searched tables of the same cost."""
        found = self.measure(steps)
        dense, inputs = self.generate(self.eager, steps, self.prompts, seed=1000)
        program = self.eager.program(inputs[0])
        made = []
        for k in tqdm(ks, desc=f"tables, {steps} steps"):
            uniform = fisopt.MaskTable(dict.fromkeys(found.blocks, k))
            ratio = found.ratio(uniform)
            for name, table in (
                ("uniform", uniform),
                ("searched", found.for_ratio(ratio * (1 - 1e-9))),
            ):
                step = fisopt.TileAttention(table=table)
                sparse = step(program).program
                error = statistics.mean(joint_error(program, sparse, call) for call in inputs)
                optimised = fisopt.optimize(self.eager, [step], backend="eager")
                clips, _ = self.generate(optimised, steps, self.prompts, seed=1000)
                made.append(
                    {
                        "steps": steps,
                        "cost_of": f"{k}:{16 - k}",
                        "table": name,
                        "masks": [None if m is None else m.k for _, m in table.items()],
                        "flops_ratio": round(found.ratio(table), 3),
                        "one_forward_error": round(error, 4),
                        **scores(clips, dense, self.prompts),
                    }
                )
                print(made[-1], flush=True)
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8])
    arguments = parser.parse_args()
    bench = Bench(arguments.clips)
    rows = []
    for steps in arguments.steps:
        rows += bench.rows(steps, arguments.k)
        result = {
            "machine": machine(),
            "clips": arguments.clips,
            "what": "bundled testbed, guidance 2.0, Euler steps, float32; measured on 2 prompts",
            "rows": rows,
        }
        write("mask_search", result)


if __name__ == "__main__":
    main()
