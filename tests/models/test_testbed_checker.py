from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from fisopt.errors import InputError
from fisopt.models.testbed import (
    Prompt,
    Reading,
    all_prompts,
    check_clip,
    draw_clip,
    parse_prompt,
    read_clip,
    to_frames,
)

PROMPT = parse_prompt("red circle moving left fast over waves")
NOTHING = Reading(None, None, None)


def _drawn(prompt: Prompt = PROMPT, seed: int = 0) -> torch.Tensor:
    return to_frames(draw_clip(prompt, seed), "pt")


SHARES = [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 7))]


@pytest.mark.parametrize("share", SHARES)
def test_every_drawn_clip_is_read_right(share: int) -> None:
    """A seventh of them, in which every two words of a prompt meet; the others are slow."""
    prompts = list(all_prompts())[share :: len(SHARES)]
    words = [tuple(vars(prompt).values()) for prompt in prompts]
    every = [tuple(vars(prompt).values()) for prompt in all_prompts()]
    for one, other in combinations(range(len(every[0])), 2):
        assert {(w[one], w[other]) for w in words} == {(w[one], w[other]) for w in every}
    wrong = [
        (str(prompt), seed, check.reading)
        for seed, prompt in enumerate(prompts)
        if not (check := check_clip(_drawn(prompt, seed), prompt)).right
    ]
    assert wrong == []


@pytest.mark.parametrize("seed", range(20))
def test_the_start_does_not_matter(seed: int) -> None:
    prompt = Prompt("yellow", "triangle", "up", "fast", "clouds")
    assert check_clip(_drawn(prompt, 100 + seed), prompt).right


def test_arrays_and_tensors_read_the_same() -> None:
    array = to_frames(draw_clip(PROMPT))
    assert array.shape == (16, 32, 32, 3)
    assert read_clip(array) == read_clip(_drawn()) == Reading("red", "circle", "left")


def test_a_wrong_prompt_is_wrong_in_that_attribute_only() -> None:
    check = check_clip(_drawn(), "blue circle moving left slow over plain")
    assert (check.colour, check.shape, check.direction, check.right) == (False, True, True, False)
    check = check_clip(_drawn(), "red square moving right slow over plain")
    assert (check.colour, check.shape, check.direction, check.right) == (True, False, False, False)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_flat_clips_show_nothing(level: float) -> None:
    assert read_clip(torch.full((16, 3, 32, 32), level)) == NOTHING


@pytest.mark.parametrize("seed", range(5))
def test_noise_shows_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert read_clip(torch.rand(16, 3, 32, 32, generator=generator)) == NOTHING
    gauss = 0.5 + 0.5 * torch.randn(16, 3, 32, 32, generator=generator)
    assert read_clip(gauss.clamp(0, 1)) == NOTHING


def test_a_shape_that_stands_still_has_no_direction() -> None:
    still = _drawn()[:1].expand(16, -1, -1, -1)
    assert read_clip(still) == Reading("red", "circle", None)


def test_a_clip_played_backwards_moves_the_other_way() -> None:
    slow = _drawn(Prompt("cyan", "square", "up", "slow", "stripes"))
    assert read_clip(slow.flip(0)) == Reading("cyan", "square", "down")


def test_frames_in_random_order_have_no_direction() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    slow = _drawn(Prompt("cyan", "square", "up", "slow", "stripes"))
    assert read_clip(slow[order]).direction is None


def test_a_shape_missing_from_half_of_the_frames_is_not_read() -> None:
    clip = _drawn()
    clip[::2] = 0.3
    assert read_clip(clip) == NOTHING


def test_a_shape_that_changes_colour_has_none() -> None:
    clip = _drawn()
    clip[8:] = clip[8:].flip(1)
    assert read_clip(clip) == Reading(None, "circle", "left")


def test_two_shapes_are_not_one() -> None:
    both = torch.maximum(_drawn(), _drawn().flip(3))
    assert not check_clip(both, PROMPT).right


def test_mild_noise_does_not_disturb() -> None:
    noise = 0.05 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert check_clip((_drawn() + noise).clamp(0, 1), PROMPT).right


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 16, 3, 32, 32), r"shape \[2, 16, 3, 32, 32\].*pass frames\[i\]"),
        (np.zeros((16, 3, 32, 32)), r"wanted one clip \[frames, 32, 32, 3\]"),
        (torch.zeros(1, 3, 32, 32), "at least 2 frames"),
        (torch.full((4, 3, 32, 32), float("nan")), "NaN"),
        (torch.full((4, 3, 32, 32), -1.0), r"from -1.00 to -1.00, wanted \[0, 1\]"),
        ([1, 2], "got list"),
    ],
)
def test_bad_frames_are_refused(frames: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_clip(frames)
