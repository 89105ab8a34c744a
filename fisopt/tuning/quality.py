"""How close a clip is to the dense clip of the same prompt and seed: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from fisopt.errors import InputError

Clip = np.ndarray | Tensor


@dataclass(frozen=True)
class Similarity:
    """Agreement of one clip with a reference.

    Attributes:
        psnr: peak signal-to-noise ratio over all pixels of all frames, in dB; infinite for
            equal clips.
        ssim: structural similarity, mean over the frames; 1 for equal clips.
    """

    psnr: float
    ssim: float


def psnr(clip: Clip, reference: Clip) -> float:
    """Peak signal-to-noise ratio of one clip in dB; see `compare` for shapes."""
    ours, theirs = _frames(clip, reference)
    return float(peak_signal_noise_ratio(ours, theirs, data_range=1.0))


def ssim(clip: Clip, reference: Clip) -> float:
    """Structural similarity of one clip, mean over its frames; see `compare` for shapes."""
    ours, theirs = _frames(clip, reference)
    value = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return float(cast("Tensor", value))  # a pair only if the image is asked for


def compare(clip: Clip, reference: Clip) -> Similarity:
    """Compare one clip with a reference of the same prompt and seed.

    Shapes: both [frames, height, width, 3] arrays or both [frames, 3, height, width] tensors,
        values in [0, 1], as diffusers pipelines return them for "np" and "pt".

    Raises:
        InputError: the shapes differ or are not those of one clip.
    """
    return Similarity(psnr(clip, reference), ssim(clip, reference))


def mean_psnr(values: Iterable[float]) -> float:
    """Mean of PSNR values; equal clips (infinite PSNR) count as 100 dB."""
    return float(np.mean([min(value, 100.0) for value in values]))


def _frames(clip: Clip, reference: Clip) -> tuple[Tensor, Tensor]:
    """Both clips as float tensors [frames, 3, height, width]."""
    if not _are_clips(clip, reference) or clip.shape != reference.shape or clip.ndim != 4:
        got = [f"{type(x).__name__} {list(getattr(x, 'shape', ()))}" for x in (clip, reference)]
        raise InputError(
            f"compare: got {' and '.join(got)}, wanted two clips of one shape, arrays "
            "[frames, height, width, 3] or tensors [frames, 3, height, width]"
        )
    return _channels_first(clip), _channels_first(reference)


def _are_clips(clip: object, reference: object) -> bool:
    return any(isinstance(clip, kind) and isinstance(reference, kind) for kind in get_args(Clip))


def _channels_first(clip: Clip) -> Tensor:
    if isinstance(clip, Tensor):
        return clip.detach().float().cpu()
    return torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32)).permute(0, 3, 1, 2)
