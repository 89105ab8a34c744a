"""What each preset does to the testbed's clips, as it was measured: the ranking, not the decibels.

Those of four steps are of benchmarks/results/tune.json, those of 25 of step_cache.json.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A preset on the testbed.

    Attributes:
        steps: denoising steps.
        speed_up: of the transformer, by FLOPs.
        psnr: to the dense clip, in dB, mean over the clips.
        right: share of clips that show their prompt, in percent.
        clips: how many.
    """

    steps: int
    speed_up: float
    psnr: float
    right: float
    clips: int

    def __str__(self) -> str:
        return f"{self.psnr:.1f} dB at {self.speed_up:.2f}x, {self.steps} steps"


FIGURES: dict[str, Figure] = {}
