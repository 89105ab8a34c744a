"""Quality against speed on the testbed: every form of frame sparsity, and a step cache.

    python benchmarks/bench_quality.py [--clips 8] [--steps 4 25] [--only PART ...]

The same prompts and noise, dense and optimised: PSNR and SSIM against the dense clip, the
checker's score against the prompt, and the ratio of FLOPs.  Rows are kept as they are made; a
second call goes on where the first one stopped.  ``--plot`` draws docs/images/quality.png and
prints the table of docs/quality.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import TestbedPipeline, check_clip, load_testbed, sample_prompts
from fisopt.quality import compare

PATH = RESULTS / "testbed_quality.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "quality.png"


@dataclass(frozen=True)
class Entry:
    """One row: a name, passes, and a step cache's threshold."""

    name: str
    passes: tuple[fisopt.Pass | str, ...] = ()
    cache: float | None = None


def entries() -> Iterator[Entry]:
    """Every configuration: scope x keys x fill x stride, presets, dense ends, step caches."""
    for scope, kv, fill, stride in itertools.product(
        ("block", "attention"), ("anchors", "all"), ("residual", "carry", "state"), (2, 3, 4)
    ):
        if scope == "attention" and fill == "state":
            continue  # equal to residual: no residual edge crosses an attention
        step = fisopt.FrameInterleave(
            stride=stride, first_block=1, last_block=-1, fill=fill, kv=kv, scope=scope
        )
        yield Entry(f"{scope}, {kv} keys, {fill}, stride {stride}", (step,))
    for stride in (2, 3):
        yield Entry(
            f"every block, anchors keys, residual, stride {stride}",
            (fisopt.FrameInterleave(stride=stride),),
        )
    yield Entry(
        "attention in every block, all keys, residual, stride 8",
        (fisopt.FrameInterleave(stride=8, scope="attention", kv="all"),),
    )
    for name in fisopt.PRESETS:
        yield Entry(f"preset {name}", (name,))
    for threshold in (0.05, 0.1, 0.2, 0.4):
        yield Entry(f"FirstBlockCache {threshold}", cache=threshold)


class Bench:
    """The testbed, its dense clips and what is known so far."""

    def __init__(self, clips: int, steps: list[int]) -> None:
        self.pipe: TestbedPipeline = load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.model = self.pipe.transformer.eval()
        self.prompts = [str(p) for p in sample_prompts(clips, seed=11)]
        self.eager: Any = fisopt.optimize(self.model, [], backend="eager")
        self.rows: list[dict[str, Any]] = []
        if PATH.exists():
            known = json.loads(PATH.read_text())
            if known["clips"] == clips:
                self.rows = known["rows"]
        self.dense = {n: self.generate(self.model, n) for n in steps}

    def generate(self, transformer: Any, steps: int) -> tuple[np.ndarray, float]:
        """Clips [clips, 16, 32, 32, 3] from fixed noise, and the seconds they took."""
        self.pipe.transformer = transformer
        generators = [torch.Generator().manual_seed(1000 + i) for i in range(len(self.prompts))]
        start = time.perf_counter()
        frames = self.pipe(self.prompts, num_inference_steps=steps, generator=generators).frames
        return frames, time.perf_counter() - start

    def row(self, entry: Entry, steps: int) -> dict[str, Any]:
        """Measure one configuration at one number of steps."""
        dense, dense_seconds = self.dense[steps]
        if entry.cache is not None:
            self.model.enable_cache(FirstBlockCacheConfig(threshold=entry.cache))
            try:
                clips, seconds = self.generate(self.model, steps)
            finally:
                self.model.disable_cache()
            ratio = None
        else:
            optimised = fisopt.optimize(self.eager, entry.passes, backend="eager")
            clips, seconds = self.generate(optimised, steps)
            ratio = self.flops_ratio(optimised, entry, steps)
        return {
            "name": entry.name,
            "steps": steps,
            **scores(clips, dense, self.prompts),
            "flops_ratio": ratio,
            "eager_ratio": round(dense_seconds / seconds, 2),
        }

    def flops_ratio(self, optimised: Any, entry: Entry, steps: int) -> float:
        """Dense FLOPs of all steps over those of the optimised run."""
        if not entry.passes:
            return 1.0
        density = {v.passes: v.density for v in optimised.report.variants}
        resolved = optimised.passes
        total = 0.0
        for index in range(steps):
            active = tuple(
                p.name for q in resolved if (p := q.at(fisopt.Step(index, steps))) is not None
            )
            total += density[active]
        return round(steps / total, 3)

    def save(self) -> None:
        """Write all rows."""
        write(
            PATH.stem,
            {
                "machine": machine(),
                "clips": len(self.prompts),
                "what": "bundled testbed, guidance 2.0, Euler steps, float32",
                "rows": self.rows,
            },
        )

    def run(self) -> None:
        """Measure every row that is not there yet."""
        for steps, (frames, _) in self.dense.items():
            if not self.known("dense", steps):
                found = scores(frames, frames, self.prompts)
                row = {"name": "dense", "steps": steps, **found}
                self.rows.append({**row, "flops_ratio": 1.0, "eager_ratio": 1.0})
        todo = [(e, n) for e in entries() for n in sorted(self.dense) if not self.known(e.name, n)]
        for entry, steps in tqdm(todo, desc="quality"):
            self.rows.append(self.row(entry, steps))
            self.save()

    def known(self, name: str, steps: int) -> bool:
        """Whether a row is there."""
        return any(r["name"] == name and r["steps"] == steps for r in self.rows)


def scores(clips: np.ndarray, dense: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """Agreement with the dense clips and with the prompts."""
    pairs = [compare(clip, reference) for clip, reference in zip(clips, dense, strict=True)]
    checks = [check_clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
    share = 100 / len(checks)
    return {
        "psnr": round(statistics.mean(min(p.psnr, 99.0) for p in pairs), 2),
        "ssim": round(statistics.mean(p.ssim for p in pairs), 4),
        "colour": round(share * sum(c.colour for c in checks), 1),
        "shape": round(share * sum(c.shape for c in checks), 1),
        "direction": round(share * sum(c.direction for c in checks), 1),
        "right": round(share * sum(c.right for c in checks), 1),
    }


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """The rows of one number of steps as a markdown table, the fastest first."""
    head = (
        f"| {steps} steps | FLOPs ratio | PSNR dB | SSIM | colour % | shape % | direction % "
        "| all % |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    mine = [r for r in rows if r["steps"] == steps]
    mine.sort(key=lambda r: -(r["flops_ratio"] or r["eager_ratio"]))
    lines = [
        f"| {r['name']} | {r['flops_ratio'] or str(r['eager_ratio']) + ' (time)'} | {r['psnr']} | "
        f"{r['ssim']:.3f} | {r['colour']:.0f} | {r['shape']:.0f} | {r['direction']:.0f} | "
        f"{r['right']:.0f} |"
        for r in mine
    ]
    return "\n".join([head, *lines])


def plot(rows: list[dict[str, Any]]) -> None:
    """Draw quality against speed, one panel a number of steps."""
    import matplotlib.pyplot as plt

    steps = sorted({r["steps"] for r in rows})
    figure, axes = plt.subplots(1, len(steps), figsize=(6 * len(steps), 4.6), sharey=True)
    kinds = {
        "block, anchors keys, residual": ("o", "C0"),
        "block, anchors keys, carry": ("v", "C0"),
        "block, anchors keys, state": ("x", "C0"),
        "block, all keys, residual": ("o", "C1"),
        "attention, anchors keys, residual": ("s", "C2"),
        "attention, all keys, residual": ("s", "C3"),
        "preset": ("*", "k"),
        "FirstBlockCache": ("D", "C7"),
    }
    for axis, n in zip(np.atleast_1d(axes), steps, strict=True):
        for kind, (marker, colour) in kinds.items():
            mine = [r for r in rows if r["steps"] == n and r["name"].startswith(kind)]
            mine.sort(key=lambda r: r["flops_ratio"] or r["eager_ratio"])
            speed = [r["flops_ratio"] or r["eager_ratio"] for r in mine]
            style = "none" if kind == "preset" else "-"
            axis.plot(
                speed,
                [min(r["psnr"], 45) for r in mine],
                marker=marker,
                color=colour,
                linestyle=style,
                linewidth=0.8,
                label=kind,
            )
        axis.set(title=f"{n} steps", xlabel="speed-up (dense FLOPs / FLOPs; caches: time)")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("PSNR against the dense clip, dB")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--plot", action="store_true", help="draw and print what is there")
    arguments = parser.parse_args()
    if not arguments.plot:
        Bench(arguments.clips, arguments.steps).run()
    rows = json.loads(PATH.read_text())["rows"]
    plot(rows)
    for steps in sorted({r["steps"] for r in rows}):
        print(table(rows, steps), end="\n\n")


if __name__ == "__main__":
    main()
