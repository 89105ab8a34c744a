"""Plans for a speed on the testbed, and how they do on clips that no search saw.

    python benchmarks/bench_tune.py [--steps 25] [--targets 2x 2.5x] [--presets few-fast]

Each target is tuned for on twelve prompts; the plans then run on others, from other noise: PSNR to
the dense clip with a 95 % interval, and the checker's score.  Measurements, plans and clips are
kept as they are made, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.cli.schedule import plan_steps
from fisopt.models.testbed import check_clip, load_testbed, sample_prompts, to_frames
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.variants import Variants
from fisopt.tuning.costs import StageTimes
from fisopt.tuning.quality import compare

FEW, MANY = 4, 25
BACKENDS: tuple[Any, ...] = ("eager", "inductor")
TARGETS = {FEW: ["2x", "1.5x", "2.5x", "3x"], MANY: ["3x", "2x", "4x", "5x"]}
PROMPTS = [str(p) for p in (*sample_prompts(4, seed=1), *sample_prompts(8, seed=2))]


def path_of(steps: int) -> Path:
    """Where the plans of a number of steps are."""
    return RESULTS / ("tune.json" if steps == FEW else f"tune_{steps}.json")


class Bench:
    """The testbed, what was tuned and what was measured."""

    def __init__(self, steps: int, clips: int, minutes: float, kept: Path) -> None:
        self.steps, self.path = steps, path_of(steps)
        self.pipe = load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.minutes, self.kept = minutes, kept
        self.prompts = held_out(clips)
        held: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.plans: dict[str, Any] = held.get("plans", {})
        self.scores: dict[str, list[dict[str, Any]]] = held.get("scores", {})
        self.times: dict[str, Any] = {
            target: known for target, known in held.get("times", {}).items() if "eager" in known
        }
        self.note = {name: held[name] for name in ("note",) if name in held}
        self.speeds: dict[str, float | None] = {}
        self.stages: dict[str, float] = {}
        self.dense: list[tuple[np.ndarray, torch.Tensor]] = []
        self.eager = fisopt.optimize(self.pipe.transformer, [], backend="eager")

    def tune(self, target: str) -> None:
        """Find the plan of a target, unless it is there."""
        if target in self.plans:
            return
        began = perf_counter()
        made = fisopt.tune(
            self.pipe,
            target,
            PROMPTS,
            steps=self.steps,
            minutes=self.minutes,
            progress=self.kept,
        )
        self.plans[target] = {
            **made.said(),
            "predicted": round(made.predicted, 4),
            "minutes": round((perf_counter() - began) / 60, 1),
            "recipe": made.recipes["transformer"].plain(),
            "front": made.front,
            "notes": made.notes,
        }
        self.scores.pop(target, None)
        self.save()

    def run(self, target: str) -> None:
        """Measure a plan on every clip that is not measured yet; "dense" is the dense model."""
        rows = self.scores.setdefault(target, [])
        if target == "dense":
            module: Any = self.eager
        elif target in fisopt.PRESETS:
            module = fisopt.optimize(self.eager, [target], backend="eager")
        else:
            recipe = self.plans[target]["recipe"]
            module = fisopt.optimize(self.eager, recipe=recipe, backend="eager")
        for index in tqdm(range(len(rows), len(self.prompts)), desc=target):
            clip, latents = self.clip(module, index)
            reference = self.clip(self.eager, index)
            found = compare(clip, reference[0])
            error = (latents - reference[1]).norm() / reference[1].norm()
            rows.append(
                {
                    "psnr": round(min(found.psnr, 99.0), 3),
                    "ssim": round(found.ssim, 4),
                    "error": round(float(error), 5),
                    "right": check_clip(clip, self.prompts[index]).right,
                }
            )
            self.save()

    def time(self, target: str) -> None:
        """CPU seconds of a clip on one thread, dense and under a plan: eager, then compiled.

        Beside them what FLOPs promise, and what the times of the plan's stages promise.
        """
        known = self.times.setdefault(target, {})
        recipe = self.plans[target]["recipe"]
        for backend in (b for b in BACKENDS if b not in known):
            dense = fisopt.optimize(self.eager, [], backend=backend)
            fast = fisopt.optimize(self.eager, recipe=recipe, backend=backend)
            known[backend] = self.compared(dense, fast, self.plans[target]["speed_up"])
            if backend == "eager":
                known[backend]["stages"] = round(self.promised(fast), 3)
            self.save()

    def compared(self, dense: Any, fast: Any, predicted: float, rounds: int = 3) -> dict[str, Any]:
        """Seconds of both, in turns, and their ratio beside the one that FLOPs predict."""
        seconds: dict[str, list[float]] = {"dense": [], "plan": []}
        for turn in range(rounds + 1):  # the first captures, rewrites and compiles
            for name, module in (("dense", dense), ("plan", fast)):
                began = process_time()
                self.run_once(module, turn)
                if turn:
                    seconds[name].append(process_time() - began)
        pairs = zip(seconds["dense"], seconds["plan"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        medians = {name: round(statistics.median(s), 3) for name, s in seconds.items()}
        return {
            "seconds": medians,
            "speed_up": round(ratio, 3),
            "reached": round(ratio / predicted, 3),
        }

    def promised(self, fast: Any) -> float:
        """Dense seconds over those of a plan, as the sum of its stages, each timed alone."""
        costs, inputs = StageTimes("eager", self.stages), fast.last_inputs.kwargs()
        steps = [fast.program(inputs, fisopt.Step(i, self.steps)) for i in range(self.steps)]
        dense = self.eager.program(inputs)
        return self.steps * costs.whole(dense) / sum(map(costs.whole, steps))

    def clip(self, module: Any, index: int) -> tuple[np.ndarray, torch.Tensor]:
        """One clip [frames, height, width, 3] and its latents, from fixed noise."""
        if module is self.eager and index < len(self.dense):
            return self.dense[index]
        latents = self.run_once(module, index)
        frames = to_frames(latents)[0]
        if module is self.eager:
            self.dense.append((frames, latents))
        return frames, latents

    def run_once(self, module: Any, index: int) -> torch.Tensor:
        """The final latents of a clip."""
        self.pipe.transformer = module
        generator = torch.Generator().manual_seed(1000 + index)
        latents: torch.Tensor = self.pipe(
            self.prompts[index],
            num_inference_steps=self.steps,
            generator=generator,
            output_type="latent",
        ).frames
        return latents

    def speed(self, target: str) -> float | None:
        """Dense FLOPs of all steps over those of a plan or a preset; None if the run decides."""
        if target not in fisopt.PRESETS:
            return self.plans[target]["speed_up"] if target in self.plans else 1.0
        if target not in self.speeds:
            if self.eager.last_inputs is None:
                return None
            dense = self.eager.program(self.eager.last_inputs.kwargs())
            variants = Variants.of(fisopt.PRESETS[target][1], self.steps)
            plan = plan_steps(variants, self.steps, lambda v: PassManager.of(v).run(dense))
            self.speeds[target] = None if plan.ratio is None else round(plan.ratio, 3)
        return self.speeds[target]

    def save(self) -> None:
        """Write what is known, with means and intervals."""
        rows = []
        for target, scores in self.scores.items():
            row = {"target": target, "speed_up": self.speed(target), **summary(scores)}
            rows.append(row)
        write(
            self.path.stem,
            {
                "machine": machine(),
                "what": f"bundled testbed, guidance 2.0, {self.steps} Euler steps, float32",
                "steps": self.steps,
                **self.note,
                "prompts": len(PROMPTS),
                "rows": rows,
                "plans": self.plans,
                "scores": self.scores,
                "times": self.times,
            },
        )


def held_out(count: int) -> list[str]:
    """So many prompts that no search saw, no two alike."""
    first = [str(p) for p in sample_prompts(24, seed=11)]
    more = (str(p) for p in sample_prompts(4 * count, seed=12))
    return [*dict.fromkeys([*first, *(p for p in more if p not in PROMPTS)])][:count]


def summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over clips, the PSNR with the half width of its 95 % interval."""
    values = [s["psnr"] for s in scores]
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    errors = [math.log(max(s["error"], 1e-6)) for s in scores]
    return {
        "clips": len(values),
        "psnr": round(statistics.mean(values), 2),
        "half": round(half, 2),
        "ssim": round(statistics.mean(s["ssim"] for s in scores), 4),
        "error": round(math.exp(statistics.mean(errors)), 4),
        "right": round(100 * statistics.mean(s["right"] for s in scores), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=FEW)
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--presets", nargs="*", default=list(fisopt.PRESETS))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--kept", type=Path, default=Path("out/tune.{}.measured.json"))
    arguments = parser.parse_args()
    steps, kept = arguments.steps, Path(str(arguments.kept).format(arguments.steps))
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(steps, arguments.clips, arguments.minutes, kept)
    for target in arguments.targets or TARGETS[steps]:
        bench.tune(target)
        bench.run(target)
        bench.time(target)
    for name in ("dense", *arguments.presets):
        bench.run(name)


if __name__ == "__main__":
    main()
