"""HunyuanVideo 1.5 from an image, with the step-distilled transformer and fisopt.

    python examples/hunyuanvideo15.py --image heron.png --prompt "the heron takes off"

Guidance is distilled too: this repository's guider has a scale of 1, so a step is one call.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import diffusers
import imageio.v3 as iio
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline

import fisopt

REPOSITORY = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v_step_distilled"
FPS = 24


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--image", required=True, help="a file or an address")
    parser.add_argument("--prompt", default="the camera moves slowly to the left")
    parser.add_argument("--preset", default="few-balanced", choices=fisopt.PRESETS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/hunyuanvideo15.mp4"))
    options = parser.parse_args(given)
    pipe = HunyuanVideo15ImageToVideoPipeline.from_pretrained(REPOSITORY, dtype=torch.bfloat16)
    pipe.to("cuda")
    fisopt.optimize(pipe, passes=[options.preset])
    clip = pipe(
        prompt=options.prompt,
        image=diffusers.utils.load_image(options.image),
        num_inference_steps=options.steps,
        generator=torch.Generator("cpu").manual_seed(0),
    ).frames[0]
    print(fisopt.summary(pipe))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * clip).round().astype("uint8")
    iio.imwrite(options.out, pixels, fps=FPS, codec="libx264", plugin="pyav")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
