"""Clips drawn by code: one coloured shape moves and bounces over a moving, muted background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fisopt.errors import InputError
from fisopt.models.testbed.prompts import BACKGROUNDS, SHAPES, SLOTS, Prompt

SIZE = 32
FRAMES = 16
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.9, -0.8, -0.8),
    "green": (-0.8, 0.8, -0.8),
    "blue": (-0.8, -0.7, 0.95),
    "yellow": (0.9, 0.85, -0.8),
    "magenta": (0.9, -0.8, 0.9),
    "cyan": (-0.8, 0.85, 0.9),
}
PIXELS_PER_FRAME = {"slow": 1.0, "fast": 2.0}

CIRCLE_RADIUS = 6.5
SQUARE_HALF = 5.75
TRIANGLE_INRADIUS = 4.0

_HEADINGS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # as DIRECTIONS
_MARGIN = 7.0  # the centre keeps this distance from the border
_START_JITTER = 3.0  # along the way
_SIDE_JITTER = 6.0  # across the way, to both sides
_GREY = -0.35
_CONTRAST = 0.2


def draw_clip(prompt: Prompt, seed: int = 0, num_frames: int = FRAMES) -> Tensor:
    """Draw one clip.

    Args:
        prompt: What to show.
        seed: Chooses the start and the background's phase.
        num_frames: Length of the clip.

    Returns:
        Pixels in [-1, 1], shape [3, num_frames, 32, 32].
    """
    generator = torch.Generator().manual_seed(seed)
    return draw_clips([prompt], generator, num_frames)[0]


def draw_clips(
    prompts: Sequence[Prompt] | Tensor,
    generator: torch.Generator | None = None,
    num_frames: int = FRAMES,
) -> Tensor:
    """Draw a batch of clips.

    Args:
        prompts: Prompts, or their word indices [batch, slots].
        generator: Chooses starts and background phases.
        num_frames: Length of the clips.

    Returns:
        Pixels in [-1, 1], shape [batch, 3, num_frames, 32, 32], float32 on the CPU.
    """
    if num_frames < 1:
        raise InputError(f"draw_clips: got num_frames={num_frames}, wanted 1 or more")
    indices = (
        prompts
        if isinstance(prompts, Tensor)
        else torch.tensor([prompt.indices() for prompt in prompts]).reshape(-1, len(SLOTS))
    )
    colour, shape, direction, speed, background = indices.unbind(1)
    centres = _centres(direction, speed, num_frames, generator)  # [B, F, 2]
    cover = _cover(shape, centres)[:, None]  # [B, 1, F, H, W]
    rgb = torch.tensor(list(PALETTE.values()))[colour][:, :, None, None, None]
    ground = _ground(background, num_frames, generator)[:, None]
    return ground + cover * (rgb - ground)


def sample_indices(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw word indices [count, slots], every word of a slot equally likely."""
    columns = [torch.randint(len(words), (count,), generator=generator) for words in SLOTS.values()]
    return torch.stack(columns, 1)


def shape_cover(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """Return the share of each pixel that a shape covers, given offsets from its centre."""
    return (0.5 - _distance(shape, dx, dy)).clamp(0, 1)


def _distance(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside; y points down."""
    if shape == "circle":
        return torch.sqrt(dx * dx + dy * dy) - CIRCLE_RADIUS
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - SQUARE_HALF
    below = dy - TRIANGLE_INRADIUS / 2  # the bounding box is centred, not the centroid
    sides = math.sqrt(0.75) * dx.abs() - 0.5 * below
    return torch.maximum(below, sides) - TRIANGLE_INRADIUS


def _pixels() -> Tensor:
    return torch.arange(SIZE) + 0.5


def _centres(
    direction: Tensor, speed: Tensor, num_frames: int, generator: torch.Generator | None
) -> Tensor:
    """Centre of the shape in each frame [B, F, 2] as (x, y)."""
    batch = len(direction)
    heading = _HEADINGS[direction]
    step = torch.tensor(list(PIXELS_PER_FRAME.values()))[speed]
    start = _START_JITTER * torch.rand(batch, generator=generator)
    side = _SIDE_JITTER * (2 * torch.rand(batch, generator=generator) - 1)
    room = SIZE - 2 * _MARGIN
    travelled = start[:, None] + step[:, None] * torch.arange(num_frames)
    folded = room - (travelled % (2 * room) - room).abs()  # runs 0..room and back
    along = heading[:, None] * (folded - room / 2)[..., None]
    across = heading.flip(1).abs()[:, None] * side[:, None, None]
    return SIZE / 2 + along + across


def _cover(shape: Tensor, centres: Tensor) -> Tensor:
    dx = _pixels() - centres[..., 0, None, None]  # [B, F, 1, W]
    dy = _pixels()[:, None] - centres[..., 1, None, None]  # [B, F, H, 1]
    cover = torch.zeros(*centres.shape[:2], SIZE, SIZE)
    for index, name in enumerate(SHAPES):
        rows = shape == index
        cover[rows] = shape_cover(name, dx[rows], dy[rows])
    return cover


def _ground(background: Tensor, num_frames: int, generator: torch.Generator | None) -> Tensor:
    """Grey background [B, F, H, W]."""
    phase = 2 * math.pi * torch.rand(len(background), 4, 1, 1, 1, generator=generator)
    time = torch.arange(num_frames)[:, None, None] * (2 * math.pi / 16)
    x = _pixels() * (2 * math.pi / SIZE)
    y = x[:, None]
    pattern = torch.zeros(len(background), num_frames, SIZE, SIZE)
    for index, name in enumerate(BACKGROUNDS):
        rows = background == index
        a, b, c, d = phase[rows].unbind(1)
        if name == "waves":  # crests run down, bent sideways
            pattern[rows] = torch.sin(3 * y + torch.sin(2 * x + b) - 2 * time + a)
        elif name == "stripes":  # upright bars run right
            pattern[rows] = torch.sin(4 * x - time + a + 0 * y)
        elif name == "checks":  # a board runs along the diagonal
            pattern[rows] = torch.sin(3 * x - time + a) * torch.sin(3 * y - time + b)
        elif name == "clouds":  # slow blobs
            pattern[rows] = 0.5 * (
                torch.sin(x + y + time + a)
                + torch.sin(2 * x - y + time + b) * 0.7
                + torch.sin(x - 2 * y - time + c) * 0.7
                + torch.sin(y - x + d) * 0.6
            )
    return _GREY + _CONTRAST * pattern
