"""Token reduction on the testbed: a calibrated schedule against one share for all, at equal cost.

    python benchmarks/bench_token_reduction.py [--steps 4 25] [--targets 0.9 0.8 0.7] [--clips 12]

A schedule is calibrated on some prompts and tried on others.  For each target of the mean cost of
attention: the error of one forward call, PSNR and SSIM against the dense clips of the same noise,
the checker's score, and the cost of attention as predicted and as timed.  The uniform form drops
the same share of queries and of values everywhere.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, interleaved, machine, write

import fisopt
from fisopt import TokenReduction, quality
from fisopt.calibration import Target, calibrate
from fisopt.models import testbed
from fisopt.passes.schedule import Schedule
from fisopt.rewrite.partition import destination_count, sources_to_keep

STRIDE = (2, 2, 2)
PROMPTS = 4
GRID = (16, 8, 8)


def generate(pipe: Any, prompt: str, seed: int, steps: int, output_type: str = "np") -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt, num_inference_steps=steps, generator=generator, output_type=output_type
    ).frames[0]


def attention_seconds(schedule: Schedule, rounds: int = 5) -> float:
    """Time of the attentions of a schedule as a share of the dense ones, heads and batch as is."""
    tokens, count = int(np.prod(GRID)), destination_count(GRID, STRIDE)
    config = testbed.load_testbed().transformer.config
    heads, width = config.num_attention_heads, config.attention_head_dim

    def left(ratio: float) -> int:
        return count + sources_to_keep(tokens, count, ratio) if ratio else tokens

    def call(pair: tuple[float, float]) -> Any:
        query = torch.randn(1, heads, left(pair[0]), width)
        key = torch.randn(1, heads, left(pair[1]), width)
        return lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key)

    calls = {str(pair): call(pair) for pair in {(0.0, 0.0), *schedule.pairs()}}
    seconds = {n: statistics.median(s) for n, s in interleaved(calls, rounds).items()}
    pairs = [
        str((schedule.ratio("query", b, s), schedule.ratio("value", b, s)))
        for b in range(schedule.blocks)
        for s in range(schedule.steps)
    ]
    seconds |= {"(0, 0)": seconds["(0.0, 0.0)"]}
    return sum(seconds[pair] for pair in pairs) / (len(pairs) * seconds["(0.0, 0.0)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--clips", type=int, default=12)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "clips": options.clips, "rows": []}
    pipe = testbed.load_testbed()
    pipe.set_progress_bar_config(disable=True)
    measured = [str(p) for p in testbed.sample_prompts(PROMPTS, 0)]
    tried = [str(p) for p in testbed.sample_prompts(options.clips, 1)]
    for steps in options.steps:
        dense = clips_of(pipe, tried, steps, ())
        result["rows"].append({"steps": steps, "form": "dense", **score(dense, dense, tried)})
        print(result["rows"][-1], flush=True)
        for target in options.targets:

            def run(p: Any, index: int, steps: int = steps) -> None:
                generate(p, measured[index], 1000 + index, steps, "latent")

            partial = RESULTS / f"token_reduction_{steps}.partial.safetensors"
            made = calibrate(
                pipe, run, prompts=PROMPTS, steps=steps, target=Target(target), partial=partial
            )
            share = 1 - target**0.5
            for form, step, cost in (
                ("calibrated", TokenReduction(schedule=made.schedule), made.cost),
                ("uniform", TokenReduction(share, share), target),
            ):
                row = {"steps": steps, "target": target, "form": form, "cost": round(cost, 4)}
                if form == "calibrated":
                    row["forward_error"] = round(made.error, 5)
                    row["attention_shapes"] = len(made.schedule.pairs())
                    row["cost_timed"] = round(attention_seconds(made.schedule), 4)
                row |= score(clips_of(pipe, tried, steps, (step,)), dense, tried)
                result["rows"].append(row)
                print(row, flush=True)
        Path(partial).unlink(missing_ok=True)
    print(f"wrote {write('token_reduction', result)}")


def clips_of(pipe: Any, prompts: list[str], steps: int, passes: tuple[Any, ...]) -> list[Any]:
    original = pipe.transformer
    try:
        if passes:
            fisopt.optimize(pipe, passes, backend="eager")
        return [generate(pipe, prompt, i, steps) for i, prompt in enumerate(prompts)]
    finally:
        pipe.transformer = original


def score(clips: list[Any], dense: list[Any], prompts: list[str]) -> dict[str, float]:
    similar = [quality.compare(a, b) for a, b in zip(clips, dense, strict=True)]
    right = [testbed.check_clip(c, p).right for c, p in zip(clips, prompts, strict=True)]
    return {
        "psnr": round(quality.mean_psnr(s.psnr for s in similar), 2),
        "ssim": round(statistics.fmean(s.ssim for s in similar), 4),
        "right": round(statistics.fmean(right), 3),
    }


if __name__ == "__main__":
    main()
