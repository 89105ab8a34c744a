"""Quality against speed on the testbed: every form of frame sparsity.

    python benchmarks/bench_quality.py [--clips 24] [--steps 4 25] [--only TEXT]

The same prompts and noise, dense and optimised: PSNR with its 95 % interval and SSIM against the
dense clip, the checker's score against the prompt, and the ratio of FLOPs.  Rows are kept as they
are made; a second call goes on where the first one stopped.  benchmarks/report.py draws and
tabulates them.  Presets, caches and others' methods are those of bench_peers.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import (
    TestbedPipeline,
    check_clip,
    draw_clips,
    encode_prompts,
    load_testbed,
    parse_prompt,
    sample_prompts,
)
from fisopt.models.testbed.model import TIMESTEPS, with_coordinates
from fisopt.tuning.quality import compare

PATH = RESULTS / "testbed_quality.json"


FORWARDS = 6
"""The clips of which single forward calls are compared."""
MANY = 20
"""From so many steps on only forms that fill by the update are run."""


@dataclass(frozen=True)
class Entry:
    """One row: a name and passes."""

    name: str
    passes: tuple[fisopt.Pass, ...] = ()


def entries(steps: int) -> Iterator[Entry]:
    """Every configuration: scope x keys x fill x stride, and other dense blocks."""
    yield Entry("no pass")  # the floor: the captured graph against the model itself
    many = steps >= MANY
    fills: tuple[Any, ...] = ("residual",) if many else ("residual", "carry", "state")
    for scope, kv, fill, stride in itertools.product(
        ("block", "attention"), ("anchors", "all"), fills, (2, 3) if many else (2, 3, 4)
    ):
        if scope == "attention" and fill == "state":
            continue  # equal to residual: no residual edge crosses an attention
        step = fisopt.FrameInterleave(stride=stride, fill=fill, kv=kv, scope=scope)
        yield Entry(f"{scope}, {kv} keys, {fill}, stride {stride}", (step,))
    for stride in () if many else (2, 3):
        yield Entry(
            f"every block, anchors keys, residual, stride {stride}",
            (fisopt.FrameInterleave(stride=stride, blocks=":"),),
        )
        yield Entry(
            f"first and last block dense, anchors keys, residual, stride {stride}",
            (fisopt.FrameInterleave(stride=stride, blocks="1:-1"),),
        )
    for stride in () if many else (2, 8):
        yield Entry(
            f"attention in every block, all keys, residual, stride {stride}",
            (fisopt.FrameInterleave(stride=stride, blocks=":", scope="attention", kv="all"),),
        )


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
        self.calls = fixed_latents(self.prompts[:FORWARDS])
        with torch.no_grad():
            self.velocities = [self.model(**call)[0] for call in self.calls]

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
        optimised = fisopt.optimize(self.eager, entry.passes, backend="eager")
        clips, seconds = self.generate(optimised, steps)
        return {
            "name": entry.name,
            "steps": steps,
            **scores(clips, dense, self.prompts),
            "one_forward_l2": self.one_forward(optimised),
            "flops_ratio": ratio_of(optimised),
            "eager_ratio": round(dense_seconds / seconds, 2),
        }

    def one_forward(self, optimised: Any) -> float:
        """Relative L2 error of one forward call without dense steps, mean over noise levels."""
        errors = []
        for call, want in zip(self.calls, self.velocities, strict=True):
            with optimised.cache_context("cond", step_index=1, num_inference_steps=3):
                got = optimised(**call)[0]
            errors.append(float((got - want).norm() / want.norm()))
        return round(statistics.mean(errors), 4)

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

    def run(self, only: str) -> None:
        """Measure every row that is not there yet and whose name holds ``only``."""
        for steps, (frames, _) in self.dense.items():
            if not self.known("dense", steps):
                found = scores(frames, frames, self.prompts)
                row = {"name": "dense", "steps": steps, **found, "one_forward_l2": 0.0}
                self.rows.append({**row, "flops_ratio": 1.0, "eager_ratio": 1.0})
        todo = [(e, n) for n in sorted(self.dense) for e in entries(n)]
        todo = [(e, n) for e, n in todo if only in e.name and not self.known(e.name, n)]
        for entry, steps in tqdm(todo, desc="quality"):
            self.rows.append(self.row(entry, steps))
            self.save()

    def known(self, name: str, steps: int) -> bool:
        """Whether a row is there."""
        return any(r["name"] == name and r["steps"] == steps for r in self.rows)


def ratio_of(optimised: Any) -> float:
    """Dense FLOPs over those of passes that are the same at every step."""
    densities = [variant.density for variant in optimised.report.variants if variant.passes]
    return round(1 / densities[-1], 3) if densities else 1.0


def fixed_latents(prompts: list[str]) -> list[dict[str, Any]]:
    """Forward calls on drawn clips at three noise levels."""
    parsed = [parse_prompt(p) for p in prompts]
    generator = torch.Generator().manual_seed(0)
    clips = draw_clips(parsed, generator)
    noise = torch.randn(clips.shape, generator=generator)
    return [
        {
            "hidden_states": with_coordinates(torch.lerp(clips, noise, sigma)),
            "timestep": torch.full((len(prompts),), sigma * TIMESTEPS),
            "encoder_hidden_states": encode_prompts(parsed),
            "return_dict": False,
        }
        for sigma in (0.9, 0.6, 0.3)
    ]


def scores(clips: np.ndarray, dense: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """Agreement with the dense clips and with the prompts."""
    pairs = [compare(clip, reference) for clip, reference in zip(clips, dense, strict=True)]
    checks = [check_clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
    share = 100 / len(checks)
    psnr = [min(p.psnr, 99.0) for p in pairs]
    spread = statistics.stdev(psnr) if len(psnr) > 1 else 0.0
    return {
        "psnr": round(statistics.mean(psnr), 2),
        "half": round(1.96 * spread / len(psnr) ** 0.5, 2),
        "ssim": round(statistics.mean(p.ssim for p in pairs), 4),
        "colour": round(share * sum(c.colour for c in checks), 1),
        "shape": round(share * sum(c.shape for c in checks), 1),
        "direction": round(share * sum(c.direction for c in checks), 1),
        "right": round(share * sum(c.right for c in checks), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    arguments = parser.parse_args()
    Bench(arguments.clips, arguments.steps).run(arguments.only)


if __name__ == "__main__":
    main()
