"""Token reduction on the testbed: a calibrated schedule against one share for all, at equal cost.

    python benchmarks/bench_token_reduction.py [--steps 4 25] [--targets 0.9 0.8 0.7] [--clips 6]

A schedule is calibrated on some prompts and tried on others.  For each target of the mean cost of
attention: the error of one forward call on the dense trajectory, PSNR and SSIM against the dense
clips of the same noise, the checker's score, and the cost of attention as predicted and as timed.
The uniform form drops the same share of queries and of values everywhere.  Destinations are drawn
once for all steps; what redrawing them gains is measured by bench_redraw.py.  Rows are kept as they
are made; a second call adds those that are missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bench_quality import scores
from harness import RESULTS, interleaved, machine, write

import fisopt
from fisopt import TokenReduction
from fisopt.models import testbed
from fisopt.passes.reduction.schedule import Schedule
from fisopt.rewrite.partition import destination_count, sources_to_keep
from fisopt.rewrite.pass_base import Step
from fisopt.tuning.replay import Call, forward_errors

PATH = RESULTS / "token_reduction.json"
STRIDE = (2, 2, 2)
PROMPTS = 4
GRID = (16, 8, 8)
PROBED = 4
"""Steps of the dense generation that are run again, evenly spread."""


class Bench:
    """The testbed with the prompts that schedules are tried on."""

    def __init__(self, clips: int) -> None:
        self.pipe = testbed.load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.measured = [str(p) for p in testbed.sample_prompts(PROMPTS, 0)]
        self.tried = [str(p) for p in testbed.sample_prompts(clips, 1)]
        self.model = self.pipe.transformer
        self.dense = fisopt.optimize(self.model, backend="eager")

    def generate(self, transformer: Any, prompts: Any, seed: int, steps: int) -> Any:
        """Clips of some prompts, each from noise of its own."""
        self.pipe.transformer = transformer
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        try:
            return self.pipe(prompts, num_inference_steps=steps, generator=generators).frames
        finally:
            self.pipe.transformer = self.model

    def trajectory(self, steps: int) -> tuple[Any, list[Call]]:
        """The dense clips, and the forward calls of some steps."""
        kept = {round(i * (steps - 1) / (PROBED - 1)) for i in range(PROBED)}
        calls: list[Call] = []
        times: list[float] = []

        def see(module: Any, args: object, kwargs: dict[str, Any], output: Any) -> None:
            time = float(kwargs["timestep"].flatten()[0])
            times.extend([time] if time not in times else [])
            index = times.index(time)
            if index in kept:
                branch = module.branch
                calls.append(Call(Step(index, steps), branch, kwargs, [output[0]]))

        handle = self.dense.register_forward_hook(see, with_kwargs=True)
        clips = self.generate(self.dense, self.tried, 0, steps)
        handle.remove()
        return clips, calls

    def rows(self, steps: int, targets: list[float]) -> Iterator[dict[str, Any]]:
        """Calibrated and uniform shares of the same cost."""
        dense, calls = self.trajectory(steps)
        partial = RESULTS / f"token_reduction_{steps}.partial.json"

        def run(pipe: Any, index: int) -> None:
            generator = torch.Generator().manual_seed(1000 + index)
            pipe(self.measured[index], num_inference_steps=steps, generator=generator)

        for target in targets:
            made = fisopt.calibrate(
                self.pipe,
                self.measured,
                steps=steps,
                target_ratio=target,
                generate=run,
                progress=partial,
            )
            share = 1 - target**0.5
            for form, step, cost in (
                ("calibrated", TokenReduction(schedule=made.schedule, redraw=False), made.cost),
                ("uniform", TokenReduction(share, share), target),
            ):
                row = {"steps": steps, "target": target, "form": form, "cost": round(cost, 4)}
                errors = forward_errors(self.dense, calls, [step])
                row["one_forward_error"] = round(statistics.mean(errors), 5)
                if form == "calibrated":
                    row["attention_shapes"] = len(made.schedule.pairs())
                    row["cost_timed"] = round(attention_seconds(made.schedule), 4)
                optimised = fisopt.optimize(self.dense, [step], backend="eager")
                clips = self.generate(optimised, self.tried, 0, steps)
                yield {**row, "clips": len(self.tried), **scores(clips, dense, self.tried)}
        partial.unlink(missing_ok=True)


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
    parser.add_argument("--clips", type=int, default=6)
    options = parser.parse_args()
    bench = Bench(options.clips)
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    what = f"bundled testbed, guidance 2.0, Euler steps, float32; calibrated on {PROMPTS} prompts"
    for steps in options.steps:
        mine = [r["target"] for r in rows if (r["steps"], r["clips"]) == (steps, options.clips)]
        for row in bench.rows(steps, [t for t in options.targets if mine.count(t) < 2]):
            print(row, flush=True)
            key = ("steps", "target", "form")
            rows = [r for r in rows if any(r[n] != row[n] for n in key)] + [row]
            write(PATH.stem, {"machine": machine(), "what": what, "rows": rows})


if __name__ == "__main__":
    main()
