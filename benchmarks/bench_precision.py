"""Quality of linears in FP8 on the testbed, alone and with frame sparsity.

    python benchmarks/bench_precision.py [--clips 8] [--steps 4] [--minutes 10]

The numbers are those of e4m3 with a scale a token and an output channel, computed in float32, so
that quality is that of a GPU and speed says nothing.  Beside strides run two plans of `fisopt.tune`
for 2x: one of bench_tune.py, and one that is searched here with linears in FP8.  The same prompts
and noise as the dense clips of the model: PSNR and SSIM against them, the checker's score, and the
error of one forward call.  Rows that are there for as many clips are kept.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from bench_quality import Bench, ratio_of, scores
from bench_tune import PROMPTS
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import load_testbed

PASSES: dict[str, tuple[fisopt.Pass, ...]] = {
    "dense": (),
    "stride 2": (fisopt.FrameInterleave(stride=2),),
    "stride 3": (fisopt.FrameInterleave(stride=3),),
}

STRIDES = [*PASSES]
PLAN, PLAN_FP8 = "plan for 2x", "plan for 2x, tuned in FP8"


def plans(minutes: float, known: dict[str, Any] | None) -> dict[str, Any]:
    """The recipes of both plans for 2x and four steps; the second is searched if need be."""
    held = json.loads((RESULTS / "tune.json").read_text())["plans"]["2x"]["recipe"]
    if known is not None:
        return {PLAN: held, PLAN_FP8: known}
    pipe = load_testbed()
    pipe.set_progress_bar_config(disable=True)
    made = fisopt.tune(pipe, "2x", PROMPTS, steps=4, minutes=minutes, linear="fp8-simulated")
    return {PLAN: held, PLAN_FP8: made.recipes["transformer"].plain()}


def passes_of(recipe: dict[str, Any]) -> tuple[fisopt.Pass, ...]:
    """What a recipe runs, without its kernels."""
    return fisopt.Recipe.from_plain(recipe, "the results").passes


def row(bench: Bench, name: str, linear: Any, steps: int, speed_up: float | None) -> dict[str, Any]:
    """Measure one list of passes with linears in one precision; a plan says its speed-up."""
    optimised = fisopt.optimize(bench.eager, PASSES[name], backend="eager", linear=linear)
    clips, _ = bench.generate(optimised, steps)
    with torch.no_grad():  # passes by step have no one forward call
        error = None if speed_up else bench.one_forward(optimised)
    said = [str(c) for c in optimised.report.variants[0].choices if c.what == "linear"]
    return {
        "passes": name,
        "linear": linear,
        "steps": steps,
        **scores(clips, bench.dense[steps][0], bench.prompts),
        "one_forward_l2": error,
        "flops_ratio": speed_up or ratio_of(optimised),
        "lowering": said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4])
    parser.add_argument("--minutes", type=float, default=10.0, help="of the search in FP8")
    arguments = parser.parse_args()
    bench = Bench(arguments.clips, arguments.steps)
    todo = [
        (name, linear, steps)
        for steps in arguments.steps
        for name in STRIDES
        for linear in ("model", "fp8-simulated")
    ]
    path = RESULTS / "precision.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, Any]] = held["rows"] if held.get("clips") == arguments.clips else []
    recipes = plans(arguments.minutes, held.get("plan")) if 4 in arguments.steps else {}
    PASSES.update({name: passes_of(recipe) for name, recipe in recipes.items()})
    todo += [(name, linear, 4) for name in recipes for linear in ("model", "fp8-simulated")]
    known = {(r["passes"], r["linear"], r["steps"]) for r in rows}
    todo = [each for each in todo if each not in known]
    for name, linear, steps in tqdm(todo, desc="precision"):
        tuned = recipes.get(name, {}).get("tuned", {})
        rows.append(row(bench, name, linear, steps, tuned.get("speed_up")))
        write(
            path.stem,
            {
                "machine": machine(),
                "clips": arguments.clips,
                "what": "bundled testbed, guidance 2.0, Euler steps; e4m3 simulated in float32",
                "rows": rows,
                "plan": recipes.get(PLAN_FP8),
            },
        )


if __name__ == "__main__":
    main()
