from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fisopt.errors import InputError
from fisopt.tuning.quality import compare, mean_psnr, psnr, ssim


def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((4, 32, 32, 3), dtype=np.float32)


def test_psnr_is_the_formula() -> None:
    ours, theirs = clip(0), clip(1)
    wanted = -10 * math.log10(np.mean((ours - theirs) ** 2))
    assert psnr(ours, theirs) == pytest.approx(wanted, rel=1e-5)


def test_equal_clips() -> None:
    found = compare(clip(), clip())
    assert found.psnr == math.inf
    assert found.ssim == pytest.approx(1)
    assert mean_psnr([found.psnr, 20]) == 60


def test_ssim_is_a_mean_over_frames_and_falls_with_noise() -> None:
    ours = clip()
    noisy = (ours + 0.1 * clip(1)).clip(0, 1)
    assert 0.5 < ssim(noisy, ours) < 1
    half = np.concatenate([ours[:2], noisy[2:]])
    wanted = (1 + ssim(noisy[2:], ours[2:])) / 2
    assert ssim(half, ours) == pytest.approx(wanted, abs=1e-5)


def test_arrays_and_tensors_agree() -> None:
    ours, theirs = clip(0), clip(1)
    as_tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (ours, theirs)]
    assert compare(ours, theirs) == compare(*as_tensors)


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"got ndarray \[4, 32, 32, 3\] and ndarray \[3,"):
        compare(clip(), clip()[1:])
    with pytest.raises(InputError, match="wanted two clips of one shape"):
        compare(clip()[None], clip()[None])
