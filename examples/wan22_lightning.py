"""Wan 2.2 A14B in four steps: Lightning adapters on both transformers, then fisopt.

    python examples/wan22_lightning.py --prompt "a heron lands on a misty lake"

Needs a GPU with 80 GB, or --offload block for less.  Begin with few-balanced; few-faithful stays
closer to the dense clip, few-fast is faster, and `fisopt tune` finds a recipe for your prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import torch
from diffusers import WanPipeline

import fisopt

REPOSITORY = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
ADAPTERS = "lightx2v/Wan2.2-Lightning"
WEIGHTS = "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/{}_noise_model.safetensors"
FPS = 16


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--prompt", default="a heron lands on a misty lake")
    parser.add_argument("--preset", default="few-balanced", choices=fisopt.PRESETS)
    parser.add_argument("--offload", choices=["block"], help="hold few blocks on the GPU")
    parser.add_argument("--out", type=Path, default=Path("out/wan22.mp4"))
    options = parser.parse_args(given)
    pipe = WanPipeline.from_pretrained(REPOSITORY, dtype=torch.bfloat16)
    pipe.load_lora_weights(ADAPTERS, weight_name=WEIGHTS.format("high"))
    # Without this argument the second transformer would run undistilled, in too few steps.
    pipe.load_lora_weights(
        ADAPTERS, weight_name=WEIGHTS.format("low"), load_into_transformer_2=True
    )
    if not options.offload:
        pipe.to("cuda")
    fisopt.optimize(pipe, passes=[options.preset], offload=options.offload)
    if options.offload:
        pipe.to("cuda")  # all but the transformers
    noise = torch.Generator("cpu").manual_seed(0)
    clip = pipe(options.prompt, num_inference_steps=4, guidance_scale=1, generator=noise).frames[0]
    print(fisopt.summary(pipe))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * clip).round().astype("uint8")
    iio.imwrite(options.out, pixels, fps=FPS, codec="libx264", plugin="pyav")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
