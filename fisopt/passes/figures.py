"""What each preset does to the testbed's clips, as it was measured: the ranking, not the decibels.

They stand in figures.json, which ``make results`` writes from testbed_peers.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fisopt.reading import read_json

FEW = 8
"""Steps up to which the figures of few steps are nearer than those of many."""


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


@cache
def figures() -> dict[str, tuple[Figure, ...]]:
    """Of every preset that was measured."""
    held = read_json(Path(__file__).parent / "figures.json")
    return {name: tuple(Figure(**each) for each in rows) for name, rows in held.items()}


def figure_of(preset: str, steps: int) -> Figure | None:
    """That of a preset at about as many steps, None if it was not measured."""
    found = (f for f in figures().get(preset, ()) if (f.steps <= FEW) == (steps <= FEW))
    return next(found, None)
