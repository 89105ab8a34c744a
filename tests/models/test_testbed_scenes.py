from __future__ import annotations

import pytest
import torch

from fisopt.errors import InputError
from fisopt.models.testbed import Prompt, draw_clip, draw_clips, parse_prompt
from fisopt.models.testbed.scenes import PALETTE, PIXELS_PER_FRAME, SIZE, sample_indices

PROMPT = parse_prompt("red circle moving left fast over waves")


def _centroids(clip: torch.Tensor) -> torch.Tensor:
    cover = (clip.amax(0) - clip.amin(0) > 0.8).float()
    pixel = torch.arange(SIZE) + 0.5
    mass = cover.sum((1, 2))
    return torch.stack([(cover.sum(1) * pixel).sum(1) / mass, (cover.sum(2) * pixel).sum(1) / mass])


def test_shape_range_and_dtype() -> None:
    clip = draw_clip(PROMPT)
    assert clip.shape == (3, 16, SIZE, SIZE)
    assert clip.dtype == torch.float32
    assert clip.min() >= -1
    assert clip.max() <= 1


def test_equal_seeds_give_equal_clips_and_others_do_not() -> None:
    assert torch.equal(draw_clip(PROMPT, 3), draw_clip(PROMPT, 3))
    assert not torch.equal(draw_clip(PROMPT, 3), draw_clip(PROMPT, 4))


def test_a_short_clip_is_the_start_of_a_long_one() -> None:
    assert torch.allclose(draw_clip(PROMPT, 5, 4), draw_clip(PROMPT, 5, 16)[:, :4])


def test_prompts_and_their_indices_draw_the_same() -> None:
    indices = torch.tensor([PROMPT.indices()])
    drawn = [draw_clips(p, torch.Generator().manual_seed(0)) for p in ([PROMPT], indices)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("speed", PIXELS_PER_FRAME)
def test_the_shape_moves_at_its_speed(speed: str) -> None:
    clip = draw_clip(Prompt("green", "square", "right", speed, "checks"), 1)
    x, y = _centroids(clip)
    assert x.diff()[:7].mean() == pytest.approx(PIXELS_PER_FRAME[speed], abs=0.1)
    assert y.diff().abs().max() < 0.1


def test_a_fast_shape_bounces_and_stays_inside() -> None:
    x, _ = _centroids(draw_clip(Prompt("blue", "circle", "right", "fast", "plain"), 2))
    assert x.diff()[-1] < 0 < x.diff()[0]
    assert x.min() > 6
    assert x.max() < SIZE - 6


@pytest.mark.parametrize("colour", PALETTE)
def test_the_middle_of_the_shape_has_the_palette_colour(colour: str) -> None:
    clip = draw_clip(Prompt(colour, "square", "up", "slow", "clouds"), 0)
    x, y = (int(value) for value in _centroids(clip)[:, 0])
    assert clip[:, 0, y, x].tolist() == pytest.approx(PALETTE[colour])


@pytest.mark.parametrize("background", ["waves", "stripes", "checks", "clouds"])
def test_backgrounds_move_and_are_grey(background: str) -> None:
    clip = draw_clip(Prompt("red", "circle", "left", "slow", background), 0)
    corner = clip[:, :, :2, :2]
    assert torch.equal(corner[0], corner[2])
    assert corner[0].std(0).min() > 0.01


def test_sampled_indices_use_every_word() -> None:
    indices = sample_indices(400, torch.Generator().manual_seed(0))
    assert indices.shape == (400, 5)
    assert [len(column.unique()) for column in indices.T] == [6, 3, 4, 2, 5]


def test_no_frames_is_refused() -> None:
    with pytest.raises(InputError, match="num_frames=0"):
        draw_clip(PROMPT, num_frames=0)
