from __future__ import annotations

import sys

import numpy as np
import pytest

from fisopt.comparison.likeness import MOST, likeness
from fisopt.tuning.quality import psnr, ssim


def clip(seed: int = 0, frames: int = 10, size: int = 32) -> np.ndarray:
    """Smooth frames with something that moves."""
    y, x = np.mgrid[:size, :size] / size
    phases = np.arange(frames)[:, None, None, None] / frames
    colours = np.random.default_rng(seed).random(3)
    made = 0.5 + 0.4 * np.sin(
        6 * (x + phases[..., 0])[..., None] + 3 * y[None, ..., None] + colours
    )
    return made.astype(np.float32)


def noisy(of: np.ndarray, amount: float, frames: slice = slice(None)) -> np.ndarray:
    made = of.copy()
    made[frames] += amount * np.random.default_rng(1).normal(size=of[frames].shape)
    return made.clip(0, 1).astype(np.float32)


def test_equal_clips() -> None:
    found, maps = likeness(clip(), clip())
    assert found.psnr == MOST
    assert found.by_frame == (MOST,) * 10
    assert found.ssim == pytest.approx(1)
    assert found.ms_ssim == pytest.approx(1)
    assert (found.flip, found.flicker, found.motion, found.uneven) == (0, 1, 1, 0)
    assert maps is not None
    assert maps.shape == (10, 32, 32)
    assert maps.max() == 0


def test_figures_agree_with_those_of_whole_clips() -> None:
    dense = clip()
    found, _ = likeness(noisy(dense, 0.05), dense)
    assert found.psnr == pytest.approx(psnr(noisy(dense, 0.05), dense), abs=1e-3)
    assert found.ssim == pytest.approx(ssim(noisy(dense, 0.05), dense), abs=1e-4)
    error = ((noisy(dense, 0.05) - dense)[3] ** 2).mean()
    assert found.by_frame[3] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_each_figure_is_worse_with_more_noise() -> None:
    dense = clip()
    (less, _), (more, _) = (likeness(noisy(dense, x), dense) for x in (0.02, 0.1))
    assert less.psnr > more.psnr
    assert less.ssim > more.ssim
    assert (less.ms_ssim or 0) > (more.ms_ssim or 1)
    assert (less.flip or 1) < (more.flip or 0)


def test_frames_that_alternate_are_seen() -> None:
    """Every second frame worse than its neighbours: what skipping frames does."""
    dense = clip()
    found, _ = likeness(noisy(dense, 0.1, slice(1, None, 2)), dense)
    even, _ = likeness(noisy(dense, 0.1), dense)
    assert found.uneven > 20 * max(even.uneven, 0.1)
    assert found.worst == min(found.by_frame) < 30 < found.by_frame[0]
    assert found.flicker > 1.5


def test_still_clip_has_less_motion() -> None:
    dense = clip()
    still = np.repeat(dense[:1], len(dense), axis=0)
    assert likeness(still, dense)[0].motion < 0.01
    assert likeness(dense, still)[0].motion > 10
    one = likeness(dense[:1], dense[:1])[0]
    assert (one.motion, one.flicker, one.uneven) == (1, 1, 0)


@pytest.mark.parametrize(("size", "scales"), [(8, 0), (12, 1), (32, 2), (180, 5)])
def test_scales_fit_into_the_frame(size: int, scales: int) -> None:
    from fisopt.comparison.likeness import BETAS, _betas

    betas = _betas(size, size + 5)
    assert len(betas) == scales
    if scales:
        assert sum(betas) == pytest.approx(1)
        assert betas[0] / betas[-1] == pytest.approx(BETAS[0] / BETAS[scales - 1])
    dense = clip(frames=2, size=size)
    found = likeness(noisy(dense, 0.05), dense)[0].ms_ssim
    assert (found is None) == (scales == 0)


def test_without_its_package_there_is_no_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    found, maps = likeness(clip(frames=2), clip(frames=2))
    assert found.flip is None
    assert maps is None
