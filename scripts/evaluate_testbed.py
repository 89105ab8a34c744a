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
from fisopt.models.testbed.scenes import FRAMES

FIRST_SEED = 1000
ATTRIBUTES = ("colour", "shape", "direction", "right")


def generate(
    pipeline: TestbedPipeline, clips: int, steps: int, guidance: float, batch: int, num_frames: int
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
            num_frames=num_frames,
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


CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [video, diffusion, rectified-flow, testbed]
---

# fisopt testbed

A video diffusion transformer small enough to sample on a laptop and good enough to measure
quality on. Its only purpose is to compare dense with optimised inference.

```python
from fisopt.models.testbed import check_clip, load_testbed

pipe = load_testbed()
prompt = "red circle moving left fast over waves"
clip = pipe(prompt, num_inference_steps=25).frames[0]
print(check_clip(clip, prompt).right)
```

## Model

`WanTransformer3DModel`: {layers} blocks, width {width}, {heads} heads, feed-forward {ffn},
{parameters:.2f} M parameters in float32 ({megabytes:.1f} MB). Clips have 16 frames of 32x32 pixels;
latents are the pixels, with patches of 1x4x4: 16 latent frames of 64 tokens. Eight input channels:
the three of the noisy clip and five fixed ones that tell place and time. A prompt is five fixed
orthogonal vectors, one an attribute; nothing outside the transformer is learnt. Scheduler:
`FlowMatchEulerDiscreteScheduler`, shift {shift:g}.

## Data

Clips drawn by `fisopt/models/testbed/scenes.py` as training goes, none twice: one shape (circle,
square, triangle) in one of six colours moves left, right, up or down, slow or fast, bounces off
the border, over a grey moving background (plain, waves, stripes, checks, clouds). A shape starts
on the side that it moves away from.

## Training

`scripts/train_testbed.py`: rectified flow, velocity prediction, noise levels shifted towards high
noise, 10 % of the prompts dropped; Muon for the matrices of the blocks, AdamW for the rest; short
clips (4, then 8 frames) first, 16 frames in the end; exponential moving average of the weights.
{steps} steps, {clips} clips, {minutes} minutes on `{device}` in {precision}; loss at the end
{loss}. Every layer saw every token and every frame: nothing was dropped or made sparse.
{notes}

## Figures

Share of {count} clips, prompts spread evenly, fixed seeds, guidance {guidance:g}, that the
analytic checker reads right (`scripts/evaluate_testbed.py --write`).

| steps | colour | shape | direction | all three |
|---|---|---|---|---|
{rows}

## Limits

It draws these 720 prompts and nothing else. Other frame counts run, but only 16 was trained to the
end. The checker reads neither speed nor background. What goes wrong most is the shape: corners of
squares come out round, and the checker then reads a circle.
"""


def write_card(
    pipeline: TestbedPipeline,
    figures: dict[str, dict[str, float]],
    args: argparse.Namespace,
) -> None:
    """Write evaluation.json and the model card beside the weights."""
    report = {"clips": args.clips, "guidance_scale": args.guidance, "first_seed": FIRST_SEED}
    report |= {"num_frames": args.frames, "steps": figures}
    (args.weights / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    config = pipeline.transformer.config
    parameters = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    rows = [
        f"| {steps} | " + " | ".join(f"{100 * row[name]:.0f} %" for name in ATTRIBUTES) + " |"
        for steps, row in figures.items()
    ]
    facts = json.loads((args.weights / "training.json").read_text())
    card = CARD.format(
        **{"notes": "", **facts},
        layers=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        heads=config.num_attention_heads,
        ffn=config.ffn_dim,
        parameters=parameters / 1e6,
        megabytes=parameters * 4 / 1e6,
        shift=pipeline.scheduler.config.shift,
        count=args.clips,
        guidance=args.guidance,
        rows="\n".join(rows),
    )
    (args.weights / "README.md").write_text(card)


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
    parser.add_argument("--frames", type=int, default=FRAMES)
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
        clips, checks = generate(
            pipeline, args.clips, steps, args.guidance, args.batch, args.frames
        )
        scores = {name: round(share(checks, name), 4) for name in ATTRIBUTES}
        figures[str(steps)] = scores
        seconds = time.perf_counter() - start
        print(f"{steps:3d} steps, {len(checks)} clips, {seconds:.0f} s:", json.dumps(scores))
        for check in checks:
            if not check.right:
                print("   ", check.prompt, "->", check.reading)
        if args.sheet:
            write_sheet(clips, args.sheet.with_stem(f"{args.sheet.stem}_{steps}"))
    if args.write:
        if args.checkpoint is not None:
            parser.error("--write is for exported weights: leave out --checkpoint")
        write_card(pipeline, figures, args)
        print(f"wrote {args.weights / 'evaluation.json'} and README.md")


if __name__ == "__main__":
    main()
