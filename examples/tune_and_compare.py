"""Tune a pipeline for a speed, then compare the plan with presets on prompts that it never saw.

    python examples/tune_and_compare.py --minutes 15

Writes recipe.yaml and compare.html into --out.  Put your pipeline and your prompts in the place of
the testbed and its prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import fisopt
from fisopt.models.testbed import load_testbed, sample_prompts


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--target", default="2x")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--prompts", type=int, default=12, help="to tune on")
    parser.add_argument("--clips", type=int, default=8, help="to compare on")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(given)
    pipe = load_testbed()
    pipe.set_progress_bar_config(disable=True)
    prompts = [str(prompt) for prompt in sample_prompts(options.prompts, seed=1)]
    options.out.mkdir(parents=True, exist_ok=True)
    tuned = fisopt.tune(
        pipe,
        options.target,
        prompts,
        steps=options.steps,
        minutes=options.minutes,
        progress=options.out / "measured.json",  # a search that was stopped goes on from here
    )
    print(f"{tuned.speed_up:.2f}x by FLOPs, error {tuned.error:.3f}, {tuned.psnr:.1f} dB")
    print("\n".join(tuned.notes))
    tuned.save(options.out / "recipe.yaml", force=True)
    others = [str(prompt) for prompt in sample_prompts(options.clips, seed=11)]
    found = fisopt.compare(
        pipe,
        others,
        {"tuned": tuned.passes, "few-balanced": ["few-balanced"], "few-fast": ["few-fast"]},
        steps=options.steps,
        backend="eager",
    )
    print(found)
    print(f"wrote {found.save_page(options.out / 'compare.html')}")


if __name__ == "__main__":
    main()
