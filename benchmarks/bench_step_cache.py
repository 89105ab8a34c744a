"""Step caches on the testbed: fisopt's, alone and with frame strides, diffusers' and cache-dit's.

    python benchmarks/bench_step_cache.py [--clips 4] [--steps 25] [--only TEXT]

The same prompts and noise for all.  Speed is a ratio of FLOPs: of fisopt, of the Programs that
ran; of the others, of the blocks that ran, their own bookkeeping not counted.  Rows of cache-dit
need that package, which nothing else here uses.  Rows are kept as they are made.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_quality import counted, scores
from diffusers import FirstBlockCacheConfig
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt import FrameInterleave, StepCache
from fisopt.models.testbed import load_testbed, sample_prompts
from fisopt.runtime.plans import Plan

PATH = RESULTS / "step_cache.json"
THRESHOLDS = (0.1, 0.14, 0.2, 0.28, 0.4)


@dataclass(frozen=True)
class Entry:
    """One row: a name, and passes or what another library is told."""

    name: str
    passes: tuple[fisopt.Pass, ...] = ()
    diffusers: float | None = None
    cache_dit: tuple[float, int, int, int, bool] | None = None
    every: int = 0


def entries() -> Iterator[Entry]:
    """Every configuration."""
    for t in THRESHOLDS:
        yield Entry(f"FirstBlockCache {t}", diffusers=t)
        yield Entry(f"StepCache {t}, order 1", (StepCache(t, order=1),))
        yield Entry(f"fis-faithful + StepCache {t}, order 1", (FAITHFUL, StepCache(t, order=1)))
        yield cache_dit(t, 1, 4, taylor=True)
        yield cache_dit(t, 1, 4)
    for first in (8, 14, 18):
        late = replace(FAITHFUL, steps=f"{first}:")
        for t in THRESHOLDS[:2]:
            name = f"fis-faithful from step {first} + StepCache {t}, order 1"
            yield Entry(name, (late, StepCache(t, order=1)))
    yield Entry("StepCache 0.2", (StepCache(0.2),))
    yield Entry("StepCache, every 3rd step computed", (StepCache(steps="1::3,2::3"),))
    for t in THRESHOLDS[:3]:
        yield cache_dit(t, 1, 1, taylor=True)
    for t in THRESHOLDS[:2]:
        yield cache_dit(t, 8, 8)
        for name, kv in (("stride 2, all keys", "all"), ("stride 2", "anchors")):
            stride = FrameInterleave(stride=2, kv=kv)
            yield Entry(f"{name} + StepCache {t}, order 1", (stride, StepCache(t, order=1)))


def cache_dit(threshold: float, first: int, warmup: int, taylor: bool = False) -> Entry:
    """A row of cache-dit."""
    forecast = ", TaylorSeer" if taylor else ""
    name = f"cache-dit F{first}B0, warm-up {warmup}, {threshold}{forecast}"
    return Entry(name, cache_dit=(threshold, first, 0, warmup, taylor))


def cache_dit_every(interval: int) -> Entry:
    """A row of cache-dit that computes every so many steps, and forecasts the others."""
    name = f"cache-dit F1B0, every {interval}, TaylorSeer"
    return Entry(name, cache_dit=(1.0, 1, 0, 1, True), every=interval)


FAITHFUL = FrameInterleave(stride=2, blocks=":", kv="all", scope="attention")


class Bench:
    """The testbed, its dense clips and what is known so far."""

    def __init__(self, clips: int, steps: int) -> None:
        self.steps, self.prompts = steps, [str(p) for p in sample_prompts(clips, seed=11)]
        self.pipe = load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.model = self.pipe.transformer.eval()
        self.eager: Any = fisopt.optimize(self.model, [], backend="eager")
        self.rows: list[dict[str, Any]] = []
        if PATH.exists():
            known = json.loads(PATH.read_text())
            if (known["clips"], known["steps"]) == (clips, steps):
                self.rows = known["rows"]
        self.dense = self.generate(self.model)

    def generate(self, transformer: Any) -> np.ndarray:
        """Clips from fixed noise."""
        self.pipe.transformer = transformer
        generators = [torch.Generator().manual_seed(1000 + i) for i in range(len(self.prompts))]
        made: np.ndarray = self.pipe(
            self.prompts, num_inference_steps=self.steps, generator=generators
        ).frames
        return made

    def run(self, entry: Entry) -> tuple[np.ndarray, float]:
        """Clips, and the share of the FLOPs that ran."""
        if entry.passes:
            optimised = fisopt.optimize(self.eager, entry.passes, backend="eager")
            with densities() as held:
                clips = self.generate(optimised)
            return clips, sum(held) / (2 * self.steps)
        if entry.diffusers is not None:
            self.model.enable_cache(FirstBlockCacheConfig(threshold=entry.diffusers))
            undo: Callable[[], None] = self.model.disable_cache
        else:
            undo = enable_cache_dit(self.pipe, self.model, entry, self.steps)
        try:
            with counted(self.model) as calls:
                clips = self.generate(self.model)
        finally:
            undo()
        return clips, len(calls) / (2 * self.steps * len(self.model.blocks))

    def row(self, entry: Entry) -> dict[str, Any]:
        """Measure one configuration."""
        clips, share = self.run(entry)
        found = scores(clips, self.dense, self.prompts)
        return {"name": entry.name, **found, "flops_ratio": round(1 / share, 3)}

    def all(self, only: str) -> None:
        """Measure every row that is not there yet and whose name holds ``only``."""
        known = {row["name"] for row in self.rows}
        there = importlib.util.find_spec("cache_dit") is not None
        todo = [e for e in entries() if e.name not in known and only in e.name]
        for entry in tqdm([e for e in todo if there or e.cache_dit is None], desc="step caches"):
            self.rows.append(self.row(entry))
            what = "bundled testbed, guidance 2.0, Euler steps, float32"
            sizes = {"clips": len(self.prompts), "steps": self.steps, "what": what}
            write(PATH.stem, {"machine": machine(), **sizes, "rows": self.rows})


@contextmanager
def densities() -> Iterator[list[float]]:
    """Gather the share of the dense FLOPs of every Program that runs."""
    held: list[float] = []
    run = Plan.run

    def noted(plan: Plan, *values: torch.Tensor) -> Any:
        held.append(plan.made.density)
        return run(plan, *values)

    with patch.object(Plan, "run", noted):
        yield held


def enable_cache_dit(pipe: Any, model: Any, entry: Entry, steps: int) -> Callable[[], None]:
    """Let cache-dit cache the testbed's transformer; returns what undoes it."""
    import cache_dit as library
    from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig

    assert entry.cache_dit is not None
    threshold, first, last, warmup, taylor = entry.cache_dit
    pipe.transformer = model
    adapter = BlockAdapter(
        pipe=pipe,
        transformer=model,
        blocks=model.blocks,
        forward_pattern=ForwardPattern.Pattern_2,
        has_separate_cfg=True,
    )
    config = DBCacheConfig(
        Fn_compute_blocks=first,
        Bn_compute_blocks=last,
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
        num_inference_steps=steps,
        enable_separate_cfg=True,
    )
    if entry.every:
        config.steps_computation_mask = [int(i % entry.every == 0) for i in range(steps)]
        config.steps_computation_policy = "static"
    forecast = TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
    with contextlib.redirect_stdout(None):
        library.enable_cache(adapter, cache_config=config, calibrator_config=forecast)
    return lambda: library.disable_cache(adapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    arguments = parser.parse_args()
    Bench(arguments.clips, arguments.steps).all(arguments.only)


if __name__ == "__main__":
    main()
