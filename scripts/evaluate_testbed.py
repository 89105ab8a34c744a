#!/usr/bin/env python
"""Score the testbed: clips from fixed seeds, read by the analytic checker.

python scripts/evaluate_testbed.py                        # 64 clips at 25 and at 4 steps
python scripts/evaluate_testbed.py --write                # ... and put the figures in the card
python scripts/evaluate_testbed.py --checkpoint runs/testbed/checkpoint.pt --clips 16 --steps 8
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fisopt.models.testbed import (
    Check,
    TestbedPipeline,
    build_pipeline,
    build_transformer,
    check_clip,
    load_testbed,
    sample_prompts,
)
from fisopt.models.testbed.pipeline import WEIGHTS

FIRST_SEED = 1000
ATTRIBUTES = ("colour", "shape", "direction", "right")


def generate(
    pipeline: TestbedPipeline, clips: int, steps: int, guidance: float, batch: int
) -> tuple[np.ndarray, list[Check]]:
    """Generate clips for a fixed set of prompts and seeds, and check each."""
    prompts = sample_prompts(clips, seed=0)
    pipeline.set_progress_bar_config(disable=True)
    frames = []
    for first in tqdm(range(0, clips, batch), desc=f"{steps} steps", unit="batch"):
        chosen = prompts[first : first + batch]
        seeds = range(FIRST_SEED + first, FIRST_SEED + first + len(chosen))
        made = pipeline(
            [str(prompt) for prompt in chosen],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        frames.append(made.frames)
    clips_made = np.concatenate(frames)
    checks = [check_clip(clip, prompt) for clip, prompt in zip(clips_made, prompts, strict=True)]
    return clips_made, checks


def share(checks: list[Check], attribute: str) -> float:
    """Share of clips of which one attribute is right; "right" stands for all of them."""
    return sum(getattr(check, attribute) for check in checks) / len(checks)


def write_sheet(clips: np.ndarray, path: Path, rows: int = 12, scale: int = 3) -> None:
    """Write the first clips as one picture, a clip a row."""
    sheet = np.concatenate([np.concatenate(list(clip), 1) for clip in clips[:rows]])
    pixels = (255 * sheet).round().astype(np.uint8)
    size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)


def load(args: argparse.Namespace) -> TestbedPipeline:
    if args.checkpoint is None:
        return load_testbed(args.weights)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    model = build_transformer()
    model.load_state_dict(state["ema"])
    print(f"{args.checkpoint}: step {state['step']}, {state['seconds'] / 60:.1f} min")
    return build_pipeline(model)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--checkpoint", type=Path, help="score a training run's averaged weights")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 4])
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--shift", type=float, help="scheduler shift other than the weights' own")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sheet", type=Path, help="write the first clips as a picture")
    parser.add_argument("--write", action="store_true", help="write evaluation.json and the card")
    args = parser.parse_args()

    pipeline = load(args)
    if args.shift is not None:
        pipeline.scheduler.register_to_config(shift=args.shift)
        pipeline.scheduler.set_shift(args.shift)
    figures = {}
    for steps in args.steps:
        start = time.perf_counter()
        clips, checks = generate(pipeline, args.clips, steps, args.guidance, args.batch)
        scores = {name: round(share(checks, name), 4) for name in ATTRIBUTES}
        figures[str(steps)] = scores
        seconds = time.perf_counter() - start
        print(f"{steps:3d} steps, {len(checks)} clips, {seconds:.0f} s:", json.dumps(scores))
        for check in checks if len(checks) <= 16 else []:
            if not check.right:
                print("   ", check.prompt, "->", check.reading)
        if args.sheet:
            write_sheet(clips, args.sheet.with_stem(f"{args.sheet.stem}_{steps}"))


if __name__ == "__main__":
    main()
