"""How a clip differs from the dense one: by pixel, by eye, by frame, in motion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from fisopt.page.films import evenly

MOST = 100.0
"""Decibels of equal clips, whose PSNR is infinite."""
CHUNK = 8
"""Frames that are measured together."""
FLIP_FRAMES = 16
"""Frames of a clip that FLIP is computed of, evenly spread."""
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM, by its authors."""
WINDOW = 11
"""Pixels of the window that SSIM looks through."""
FAINT = 1e-4
"""A change of a pixel that nobody sees; keeps ratios of still clips finite."""


@dataclass(frozen=True)
class Likeness:
    """A clip beside the dense one.

    Attributes:
        psnr: of all pixels of all frames, in dB; `MOST` for equal clips.
        ssim: mean over the frames.
        ms_ssim: the same over as many scales as fit into a frame, five from 176 pixels on; None
            where none fits.
        flip: mean FLIP error, 0 for equal clips; None without the package flip-evaluator.
        flicker: what changes from frame to frame and back, over that of the dense clip.
        motion: what changes from frame to frame, over that of the dense clip.
        by_frame: PSNR of each frame, in dB.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    flip: float | None
    flicker: float
    motion: float
    by_frame: tuple[float, ...]

    @property
    def worst(self) -> float:
        """PSNR of the worst frame, in dB."""
        return min(self.by_frame)

    @property
    def uneven(self) -> float:
        """How far PSNR jumps from a frame to the next, mean, in dB."""
        jumps = np.abs(np.diff(self.by_frame))
        return float(jumps.mean()) if len(jumps) else 0.0


def likeness(clip: np.ndarray, dense: np.ndarray) -> tuple[Likeness, np.ndarray | None]:
    """Compare a clip with the dense one.

    Args:
        clip: [frames, height, width, 3], values in [0, 1].
        dense: the same.

    Returns:
        The figures, and FLIP's error maps [frames, height, width] of `FLIP_FRAMES` frames.
    """
    maps = flip_maps(clip, dense)
    by_frame, similar, scaled = [], [], []
    for ours, theirs in _chunks(clip, dense):
        error = (ours - theirs).square().mean((1, 2, 3))
        by_frame += [_decibels(float(x)) for x in error]
        similar += _each(ssim(ours, theirs, data_range=1.0, reduction="none"))
        if betas := _betas(*ours.shape[-2:]):
            scaled += _each(_ms_ssim(ours, theirs, betas))
    whole = np.mean([10 ** (-x / 10) for x in by_frame])
    found = Likeness(
        psnr=_decibels(float(whole)),
        ssim=float(np.mean(similar)),
        ms_ssim=float(np.mean(scaled)) if scaled else None,
        flip=None if maps is None else float(maps.mean()),
        flicker=_ratio(_flicker(clip), _flicker(dense)),
        motion=_ratio(_motion(clip), _motion(dense)),
        by_frame=tuple(by_frame),
    )
    return found, maps


def flip_maps(clip: np.ndarray, dense: np.ndarray) -> np.ndarray | None:
    """FLIP's error maps of some frames, None where flip-evaluator is not installed."""
    try:
        import flip_evaluator
    except ImportError:
        return None
    maps = [
        flip_evaluator.evaluate(
            np.ascontiguousarray(dense[i], np.float32),
            np.ascontiguousarray(clip[i], np.float32),
            "LDR",
            applyMagma=False,
        )[0]
        for i in evenly(len(clip), FLIP_FRAMES)
    ]
    return np.stack(maps).reshape(len(maps), *clip.shape[1:3])


def _chunks(clip: np.ndarray, dense: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Some frames of both at a time, [frames, 3, height, width]."""
    for start in range(0, len(clip), CHUNK):
        pair = (x[start : start + CHUNK].astype(np.float32) for x in (clip, dense))
        ours, theirs = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in pair)
        yield ours, theirs


def _each(values: Any) -> list[float]:
    """What torchmetrics returns of some images, one number an image."""
    return [float(x) for x in cast("Tensor", values).reshape(-1)]


def _betas(height: int, width: int) -> tuple[float, ...]:
    """The weights of the scales at which a frame is larger than the window."""
    least = min(height, width)
    fit = [n for n in range(1, len(BETAS) + 1) if least >> (n - 1) >= WINDOW]
    chosen = BETAS[: len(fit)]
    return tuple(beta / sum(chosen) for beta in chosen)


def _ms_ssim(ours: Tensor, theirs: Tensor, betas: tuple[float, ...]) -> Any:
    return ms_ssim(ours, theirs, data_range=1.0, betas=betas, normalize="relu", reduction="none")


def _decibels(error: float) -> float:
    return min(MOST, -10 * float(np.log10(error))) if error > 0 else MOST


def _motion(clip: np.ndarray) -> float:
    return float(np.abs(np.diff(clip, axis=0)).mean()) if len(clip) > 1 else 0.0


def _flicker(clip: np.ndarray) -> float:
    return float(np.abs(np.diff(clip, n=2, axis=0)).mean()) if len(clip) > 2 else 0.0


def _ratio(ours: float, theirs: float) -> float:
    return (ours + FAINT) / (theirs + FAINT)
