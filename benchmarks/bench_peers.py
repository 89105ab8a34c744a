"""Presets, step caches and other libraries' methods on the testbed's clips, with intervals.

    python benchmarks/bench_peers.py [--clips 24] [--steps 4 25] [--only TEXT ...] [--device cuda]

Every clip alone, from the same noise for all: the clips of one batch would share a cache's
decision.  Speed is a ratio of FLOPs over a whole clip: of fisopt that of the Programs that ran,
of others that of the products and attentions that torch ran.  Rows hold a value a clip and are
kept as they are made; a second call goes on.  benchmarks/report.py tabulates them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import diffusers
import numpy as np
import torch
from bench_tune import path_of
from harness import RESULTS, machine, write
from other_caches import CacheDit, of_diffusers
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from tqdm import tqdm

import fisopt
from fisopt.comparison.configurations import Ready, ready
from fisopt.comparison.inside import predicted_ratio
from fisopt.comparison.likeness import likeness
from fisopt.comparison.making import Maker
from fisopt.comparison.scoring import check
from fisopt.models.testbed import load_testbed, sample_prompts
from fisopt.page.data import DENSE

PATH = RESULTS / "testbed_peers.json"
SEED = 1000
FIGURES = ("psnr", "worst", "uneven", "ssim", "ms_ssim", "flip", "flicker", "motion")
FAITHFUL = fisopt.FrameInterleave(stride=2, blocks=":", kv="all", scope="attention")
Kind = tuple[str, str, Any]
"""A row: its name, whether it is ours or a peer's, and the configuration."""


def entries(steps: int) -> Iterator[Kind]:
    """Every configuration at a number of steps."""
    many = steps >= 20
    if (plans := path_of(steps)).exists():
        for target, plan in json.loads(plans.read_text())["plans"].items():
            yield f"tuned {target}", "ours", plan["recipe"]
    own = "many-" if many else "few-"
    presets = sorted(fisopt.PRESETS, key=lambda name: not name.startswith(own))
    for name in presets[:3]:
        yield f"preset {name}", "ours", [name]
    for threshold in (0.1, 0.14) if many else (0.2,):
        step = fisopt.StepCache(threshold, order=1)
        yield f"StepCache {threshold}, order 1", "ours", [step]
        yield f"fis-faithful + StepCache {threshold}, order 1", "ours", [FAITHFUL, step]
    for threshold in (0.1, 0.14, 0.2) if many else (0.2, 0.3, 0.4):
        first = diffusers.FirstBlockCacheConfig(threshold=threshold)
        yield f"diffusers FirstBlockCache {threshold}", "peer", of_diffusers(first)
    for interval in (2, 3, 4) if many else (2,):
        taylor = diffusers.TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=2,
            max_order=1,
            use_lite_mode=True,  # what it looks for otherwise is not in this model
        )
        yield f"diffusers TaylorSeer, every {interval}", "peer", of_diffusers(taylor)
    if find_spec("cache_dit") is not None:
        thresholds = (0.1, 0.14, 0.2) if many else (0.24, 0.5)
        caches = [CacheDit(threshold, taylor=many) for threshold in thresholds]
        caches += [CacheDit(every=interval) for interval in ((2, 3, 4) if many else (2,))]
        for cache in caches:
            yield cache.name, "peer", cache.method(steps)
    for name in presets[3:]:
        yield f"preset {name}", "ours", [name]


class Bench:
    """The testbed at one number of steps, its dense clips and what is known so far."""

    def __init__(self, clips: int, steps: int, device: str) -> None:
        self.steps = steps
        pipe: Any = load_testbed().to(device)
        pipe.set_progress_bar_config(disable=True)
        prompts = [str(p) for p in sample_prompts(clips, seed=11)]  # those of bench_tune.py
        self.maker = Maker(pipe, prompts, steps, SEED, {}, 0, lambda done, total: None)
        self.rows: list[dict[str, Any]] = []
        if PATH.exists():
            known = json.loads(PATH.read_text())
            self.rows = known["rows"] if known["clips"] == clips else []
        self.base = ready(pipe, DENSE, (), "eager", {"transformer": pipe.transformer})
        made = [self.clip(self.base, i) for i in tqdm(range(clips), desc=f"dense, {steps} steps")]
        self.dense = [clip for clip, _ in made]
        self.flops = 0.0
        if self.row(DENSE) is None:
            self.keep(DENSE, "ours", made, 1.0)

    def row(self, name: str) -> dict[str, Any] | None:
        """What is known of a configuration."""
        mine = (r for r in self.rows if (r["name"], r["steps"]) == (name, self.steps))
        return next(mine, None)

    def clip(self, each: Ready, index: int) -> tuple[np.ndarray, float]:
        """One clip, and the FLOPs of the dense model over those that it took."""
        pipe, since = self.maker.pipeline, perf_counter()
        with each.running(pipe):
            if each.optimised:
                made = self.maker.clip(index)[0]
                return made, predicted_ratio(each, since) or 1.0
            with counted() as flops:
                made = self.maker.clip(index)[0]
        return made, self.dense_flops() / flops.get_total_flops()

    def dense_flops(self) -> float:
        """FLOPs that torch runs for a dense clip."""
        if not self.flops:
            with counted() as flops:
                self.maker.clip(0)
            self.flops = flops.get_total_flops()
        return self.flops

    def measure(self, name: str, kind: str, given: Any) -> None:
        """Measure one configuration on all clips."""
        each = ready(self.maker.pipeline, name, given, "eager", self.base.modules)
        made = [self.clip(each, index) for index in range(len(self.dense))]
        share = np.mean([1 / ratio for _, ratio in made])
        self.keep(name, kind, made, float(1 / share))

    def keep(
        self, name: str, kind: str, made: list[tuple[np.ndarray, float]], ratio: float
    ) -> None:
        """Score clips and write all rows."""
        pairs = zip(made, self.dense, self.maker.prompts, strict=True)
        found = [(likeness(c, d)[0], check(c, p)["right"]) for (c, _), d, p in pairs]
        figures: dict[str, Any] = {"right": [right for _, right in found]}
        for figure in FIGURES if name != DENSE else ():
            figures[figure] = [round(float(getattr(like, figure)), 4) for like, _ in found]
        row = {"name": name, "kind": kind, "steps": self.steps, "flops_ratio": round(ratio, 3)}
        self.rows.append({**row, **figures})
        what = "bundled testbed, guidance 2.0, Euler steps, float32"
        sizes = {"clips": len(self.dense), "seed": SEED, "what": what}
        write(PATH.stem, {"machine": machine(), **sizes, "rows": self.rows})


def counted() -> FlopCounterMode:
    """Counts the FLOPs of products and attentions, those of attention on a CPU too."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def flops(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> int:
        return int(sdpa_flop(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={attention: flops})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="rows whose name holds one of these"
    )
    arguments = parser.parse_args()
    for steps in arguments.steps:
        bench = Bench(arguments.clips, steps, arguments.device)
        wanted = (e for e in entries(steps) if any(text in e[0] for text in arguments.only))
        todo = [e for e in wanted if bench.row(e[0]) is None]
        for name, kind, given in tqdm(todo, desc=f"{steps} steps"):
            bench.measure(name, kind, given)


if __name__ == "__main__":
    main()
