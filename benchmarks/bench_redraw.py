"""Destinations drawn once for all steps against destinations redrawn in every cache window.

    python benchmarks/bench_redraw.py [--clips 24] [--seeds 0 1]

Each clip of the testbed is generated dense and with both forms from the same noise, at several
numbers of steps, cache windows and shares.  For each form: PSNR and SSIM against the dense clip and
the checker's score; for each pair: the difference in PSNR clip by clip, with its standard error.
A form is run with several seeds of the choice of destinations, because one draw for all steps is
one sample of what such a draw does.  Rows are kept as they are made; a second call adds those that
are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from bench_quality import scores
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.models import testbed
from fisopt.tuning.quality import compare

PATH = RESULTS / "redraw.json"
BATCH = 8
"""Clips that are generated together."""


@dataclass(frozen=True)
class Setting:
    """A run of both forms.

    Attributes:
        steps: denoising steps.
        cache_steps: steps of a cache window.
        query: dropped share of the queries.
        value: dropped share of the keys and values.
    """

    steps: int
    cache_steps: int
    query: float
    value: float


SETTINGS = (
    Setting(4, 1, 0.5, 0.3),
    Setting(12, 3, 0.5, 0.3),
    Setting(4, 2, 0.3, 0.3),
    Setting(12, 3, 0.7, 0.0),
)


class Bench:
    """The testbed, and its dense clips by number of steps."""

    def __init__(self, clips: int) -> None:
        self.pipe = testbed.load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.model = self.pipe.transformer
        self.eager: Any = fisopt.optimize(self.model, [], backend="eager")
        self.prompts = [str(p) for p in testbed.sample_prompts(clips, seed=21)]
        self.dense: dict[int, np.ndarray] = {}

    def generate(self, transformer: Any, steps: int) -> np.ndarray:
        """Clips [clips, 16, 32, 32, 3], each from noise of its own."""
        self.pipe.transformer = transformer
        clips = []
        for start in range(0, len(self.prompts), BATCH):
            prompts = self.prompts[start : start + BATCH]
            seeds = range(3000 + start, 3000 + start + len(prompts))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            clips.append(self.pipe(prompts, num_inference_steps=steps, generator=generators).frames)
        return np.concatenate(clips)

    def row(self, setting: Setting, seed: int, redraw: bool) -> dict[str, Any]:
        """Measure one form."""
        if setting.steps not in self.dense:
            self.dense[setting.steps] = self.generate(self.model, setting.steps)
        options: dict[str, Any] = {k: v for k, v in asdict(setting).items() if k != "steps"}
        reduction = fisopt.TokenReduction(**options, seed=seed, redraw=redraw, search="all")
        dense = self.dense[setting.steps]
        clips = self.generate(
            fisopt.optimize(self.eager, [reduction], backend="eager"), setting.steps
        )
        pairs = [compare(clip, reference) for clip, reference in zip(clips, dense, strict=True)]
        return {
            **asdict(setting),
            "seed": seed,
            "redraw": redraw,
            **scores(clips, dense, self.prompts),
            "psnr_by_clip": [round(pair.psnr, 3) for pair in pairs],
        }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gain of redrawing at each setting that both forms have, clip by clip, over all seeds."""
    found = []
    for setting in SETTINGS:
        mine = [r for r in rows if all(r[k] == v for k, v in asdict(setting).items())]
        once, again = (
            {r["seed"]: r for r in mine if r["redraw"] is form} for form in (False, True)
        )
        seeds = sorted(set(once) & set(again))
        if not seeds:
            continue
        gains = [
            statistics.mean(again[s]["psnr_by_clip"][i] - once[s]["psnr_by_clip"][i] for s in seeds)
            for i in range(len(once[seeds[0]]["psnr_by_clip"]))
        ]
        found.append(
            {
                **asdict(setting),
                "seeds": seeds,
                "gain_db": round(statistics.mean(gains), 3),
                "standard_error_db": round(statistics.stdev(gains) / math.sqrt(len(gains)), 3),
                "better_clips": sum(gain > 0 for gain in gains),
                "clips": len(gains),
                "right_once": round(statistics.mean(once[s]["right"] for s in seeds), 1),
                "right_redrawn": round(statistics.mean(again[s]["right"] for s in seeds), 1),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    known = json.loads(PATH.read_text()) if PATH.exists() else {"clips": options.clips, "rows": []}
    rows = known["rows"] if known["clips"] == options.clips else []
    bench = Bench(options.clips)
    todo = [(c, s, r) for c in SETTINGS for s in options.seeds for r in (False, True)]
    done = {
        (r["steps"], r["cache_steps"], r["query"], r["value"], r["seed"], r["redraw"]) for r in rows
    }
    for setting, seed, redraw in tqdm(todo, desc="redraw"):
        if (*asdict(setting).values(), seed, redraw) in done:
            continue
        rows.append(bench.row(setting, seed, redraw))
        result = {
            "machine": machine(),
            "what": "bundled testbed, guidance 2.0, Euler steps, float32, cells of 2x2x2",
            "clips": options.clips,
            "compared": compared(rows),
            "rows": rows,
        }
        write(PATH.stem, result)


if __name__ == "__main__":
    main()
