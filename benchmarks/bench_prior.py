"""What each option of `fisopt.tune` does to the testbed's latents alone, in all blocks at once.

    python benchmarks/bench_prior.py [--clips 4]

A price is the squared relative L2 error of a clip's final latents with an option in every block but
the first, or in the first alone, at every step, mean over the clips; ``make results`` writes the
prices to fisopt/tuning/prior.json, by which `fisopt.rehearse` plans where nothing was measured.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import get_args

from harness import machine, write
from tqdm import tqdm

from fisopt.models.testbed import load_testbed, sample_prompts
from fisopt.rewrite.pass_base import Pass
from fisopt.tuning.option import Part, options_of
from fisopt.tuning.recorder import Recorder
from fisopt.tuning.trial import Trials

STEPS, FRAMES = 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=4)
    clips = parser.parse_args().clips
    pipe = load_testbed()
    prompts = [str(p) for p in sample_prompts(clips, seed=1)]
    trials = Trials(Recorder(pipe, prompts, steps=STEPS, seed=0, component="transformer"))

    def price(passes: Sequence[Pass]) -> float:
        return statistics.mean(trials.error(c, {"transformer": passes}) for c in range(clips))

    every = [option for part in get_args(Part) for option in options_of(part, FRAMES)]
    with trials.ready():
        found = {
            where: {str(o): float(f"{price([o.everywhere(where)]):.4g}") for o in tqdm(every)}
            for where in ("1:", "0")
        }
    write(
        "prior",
        {
            "machine": machine(),
            "what": f"bundled testbed, guidance 2.0, {STEPS} Euler steps, float32",
            "clips": clips,
            "options": found["1:"],
            "first": found["0"],
        },
    )


if __name__ == "__main__":
    main()
