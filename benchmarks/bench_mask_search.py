"""Searched mask tables against one mask for every block, at equal cost, on the testbed.

    python benchmarks/bench_mask_search.py [--clips 6] [--steps 4 25] [--k 2 4 8]

Masks are measured on prompts of their own; the clips are of other prompts and noise.  For every k
there are four tables of the same FLOPs: k:(F-k) in every block, a sliding window of radius k in
every block (which keeps as many tiles), and the best by search among tile masks, and among all
masks that a search tries.  Reported are the one-forward error (relative L2 of the model's result
at the dense trajectory's inputs, mean over steps), PSNR and SSIM against the dense clips, and the
checker's score.  Rows are kept as they are made; a second call adds to them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bench_quality import scores
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import load_testbed, sample_prompts
from fisopt.passes.tiling.masks import FrameMask
from fisopt.tuning.mask_choice import Measurements
from fisopt.tuning.mask_errors import Calls, default_candidates, joint_error, tile_candidates

PATH = RESULTS / "mask_search.json"
FRAMES = 16
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
        calls = Calls.of(self.eager.program(inputs[0]), default_candidates(FRAMES))
        found = Measurements.of(calls)
        found.errors = [calls.errors(call) for call in tqdm(inputs, desc=f"measure, {steps} steps")]
        return found

    def rows(self, steps: int, ks: list[int]) -> Iterator[dict[str, Any]]:
        """Uniform masks and searched tables of the same cost."""
        everything = self.measure(steps)
        tiles = only(everything, tile_candidates(FRAMES))
        dense, inputs = self.generate(self.eager, steps, self.prompts, seed=1000)
        program = self.eager.program(inputs[0])
        for k in tqdm(ks, desc=f"tables, {steps} steps"):
            uniform = fisopt.MaskTable(dict.fromkeys(everything.blocks, k))
            ratio = everything.ratio(uniform)
            budget = ratio * (1 - 1e-9)
            tables = {
                "k:(F-k) in every block": uniform,
                "sliding window in every block": fisopt.MaskTable(
                    dict.fromkeys(everything.blocks, fisopt.SlidingWindow(k))
                ),
                "searched, tile masks": tiles.for_ratio(budget),
                "searched, all masks": everything.for_ratio(budget),
            }
            for name, table in tables.items():
                step = fisopt.TileAttention(table=table)
                sparse = step(program).program
                error = statistics.mean(joint_error(program, sparse, call) for call in inputs)
                optimised = fisopt.optimize(self.eager, [step], backend="eager")
                clips, _ = self.generate(optimised, steps, self.prompts, seed=1000)
                yield {
                    "steps": steps,
                    "clips": len(self.prompts),
                    "cost_of": f"{k}:{FRAMES - k}",
                    "table": name,
                    "masks": ["dense" if m is None else m.label for _, m in table.items()],
                    "flops_ratio": round(fisopt.predicted_ratio(program, sparse), 3),
                    "one_forward_error": round(error, 4),
                    **scores(clips, dense, self.prompts),
                }


def only(found: Measurements, masks: Sequence[FrameMask]) -> Measurements:
    """The same measurements, of some candidates."""
    columns = [found.candidates.index(mask) for mask in masks]
    flops = [[*(row[c] for c in columns), row[-1]] for row in found.flops]
    errors = [[[row[c] for c in columns] for row in call] for call in found.errors]
    return Measurements(found.blocks, tuple(masks), flops, found.total, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8])
    arguments = parser.parse_args()
    bench = Bench(arguments.clips)
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    what = "bundled testbed, guidance 2.0, Euler steps, float32; measured on 2 prompts"
    for steps in arguments.steps:
        for row in bench.rows(steps, arguments.k):
            print(row, flush=True)
            key = ("steps", "cost_of", "table")
            rows = [r for r in rows if any(r[n] != row[n] for n in key)] + [row]
            write(PATH.stem, {"machine": machine(), "what": what, "rows": rows})


if __name__ == "__main__":
    main()
