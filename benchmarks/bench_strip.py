"""The strip of frames at the head of the README: dense clips beside tuned ones, and what they cost.

    python benchmarks/bench_strip.py [--clips 24]

Recipes are those of benchmarks/results/tune.json, clips those that no search saw.  Seconds are CPU
seconds of a whole clip on one thread, all settings in turns, nothing compiled.  Shown are the first
two clips.  Writes benchmarks/results/strip.json and docs/images/strip.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from harness import RESULTS, machine, write
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import fisopt
from fisopt.models.testbed import check_clip, load_testbed, sample_prompts
from fisopt.tuning.quality import compare

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "strip.png"
TARGETS = ("1.5x", "2x", "3x")
STEPS, SHOWN, FRAMES = 4, 2, 5
SCALE, GAP, LABEL, LINE = 3, 4, 178, 18
INK, PALE = (32, 38, 46), (110, 118, 128)


def settings(pipe: Any) -> dict[str, Any]:
    """The dense model and one module for each target, all eager."""
    plans = json.loads((RESULTS / "tune.json").read_text())["plans"]
    eager = fisopt.optimize(pipe.transformer, [], backend="eager")
    made = {"dense": eager}
    for target in TARGETS:
        recipe = plans[target]["recipe"]
        made[target] = fisopt.optimize(eager, recipe=recipe, backend="eager")
    return made


def measured(clips: int) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Make every clip under every setting, in turns; return the figures and the shown clips."""
    pipe = load_testbed()
    pipe.set_progress_bar_config(disable=True)
    modules = settings(pipe)
    prompts = [str(p) for p in sample_prompts(clips, seed=11)]
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    scores: dict[str, list[tuple[float, bool]]] = {name: [] for name in modules}
    shown: dict[str, list[np.ndarray]] = {name: [] for name in modules}

    def clip(name: str, index: int) -> np.ndarray:
        pipe.transformer = modules[name]
        noise = torch.Generator().manual_seed(1000 + index)
        found: np.ndarray = pipe(prompts[index], num_inference_steps=STEPS, generator=noise).frames
        return found[0]

    for name in modules:
        clip(name, 0)  # captures and rewrites
    for index in tqdm(range(clips)):
        dense = None
        for name in modules:
            began = process_time()
            made = clip(name, index)
            seconds[name].append(process_time() - began)
            dense = made if dense is None else dense
            psnr = min(compare(made, dense).psnr, 99.0)
            scores[name].append((psnr, check_clip(made, prompts[index]).right))
            if index < SHOWN:
                shown[name].append(made)
    rows = [
        {
            "setting": name,
            "seconds": round(statistics.median(seconds[name]), 3),
            "speed_up": round(
                statistics.median(
                    a / b for a, b in zip(seconds["dense"], seconds[name], strict=True)
                ),
                3,
            ),
            "psnr": [round(p, 2) for p, _ in scores[name]],
            "right": [float(r) for _, r in scores[name]],
        }
        for name in modules
    ]
    what = f"{STEPS} steps, guidance 2.0, float32, nothing compiled"
    return {"machine": machine(), "what": what, "prompts": prompts[:SHOWN], "rows": rows}, shown


def draw(held: dict[str, Any], shown: dict[str, list[np.ndarray]]) -> Image.Image:
    """One row a setting; its figures, then frames of every shown clip."""
    first = next(iter(shown.values()))[0]
    side = SCALE * first.shape[1]
    chosen = np.linspace(0, len(first) - 1, FRAMES).round().astype(int)
    group = FRAMES * (side + GAP) + 3 * GAP
    canvas = Image.new("RGB", (LABEL + SHOWN * group, LINE + GAP + len(shown) * (side + GAP)))
    canvas.paste("white", (0, 0, *canvas.size))
    pen = ImageDraw.Draw(canvas)
    font, bold = ImageFont.load_default(13), ImageFont.load_default(16)
    for i, prompt in enumerate(held["prompts"]):
        pen.text((LABEL + i * group, 1), prompt, fill=PALE, font=font)
    for r, row in enumerate(held["rows"]):
        top = LINE + GAP + r * (side + GAP)
        dense = row["setting"] == "dense"
        title = "dense" if dense else f"tuned for {row['setting']}"
        pen.text((GAP, top + 14), title, fill=INK, font=bold)
        near = "" if dense else f", {statistics.fmean(row['psnr']):.1f} dB"
        pen.text((GAP, top + 38), f"{row['seconds']:.2f} s{near}", fill=INK, font=font)
        right = 100 * statistics.fmean(row["right"])
        pen.text((GAP, top + 56), f"{right:.0f} % right", fill=INK, font=font)
        for i, clip in enumerate(shown[row["setting"]]):
            for column, frame in enumerate(chosen):
                still = Image.fromarray((255 * clip[frame]).round().astype(np.uint8))
                still = still.resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(still, (LABEL + i * group + column * (side + GAP), top))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=24)
    torch.set_num_threads(1)
    held, shown = measured(parser.parse_args().clips)
    write("strip", held)
    draw(held, shown).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
