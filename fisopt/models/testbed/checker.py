"""Reads colour, shape and direction from the pixels of a clip; nothing here is learnt.

The shape is the only saturated thing in a scene, so its cover is the saturation of each pixel.
Colour is the nearest palette entry, shape the template with the largest overlap, direction the
way of the centroid before any bounce. What is not clearly there is read as ``None``, which is
never right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fisopt.errors import InputError
from fisopt.models.testbed.prompts import DIRECTIONS, SHAPES, Prompt, parse_prompt
from fisopt.models.testbed.scenes import PALETTE, SIZE, shape_cover

SATURATION = 1.6
"""Difference between the largest and smallest channel inside a shape, roughly, of 2."""
AREA = (40.0, 230.0)
COMPACT_RADIUS = 9.5
COMPACT_SHARE = 0.85
COLOUR_RADIUS = 0.7
SHAPE_OVERLAP = 0.7
STRAIGHT_FRAMES = 7
"""No shape bounces in its first seven frames."""
PIXELS_PER_FRAME = 0.5
FRAMES_PRESENT = 0.8


@dataclass(frozen=True)
class Reading:
    """What a clip shows, as far as it is clear.

    Attributes:
        colour: A word of ``COLOURS`` or None.
        shape: A word of ``SHAPES`` or None.
        direction: A word of ``DIRECTIONS`` or None.
    """

    colour: str | None
    shape: str | None
    direction: str | None


@dataclass(frozen=True)
class Check:
    """A reading beside the prompt that the clip was made for.

    Attributes:
        prompt: What was asked.
        reading: What was found.
    """

    prompt: Prompt
    reading: Reading

    @property
    def colour(self) -> bool:
        """Whether the colour is right."""
        return self.reading.colour == self.prompt.colour

    @property
    def shape(self) -> bool:
        """Whether the shape is right."""
        return self.reading.shape == self.prompt.shape

    @property
    def direction(self) -> bool:
        """Whether the direction until the first bounce is right."""
        return self.reading.direction == self.prompt.direction

    @property
    def right(self) -> bool:
        """Whether colour, shape and direction are all right."""
        return self.colour and self.shape and self.direction


def check_clip(frames: Tensor | np.ndarray, prompt: Prompt | str) -> Check:
    """Check one clip against its prompt.

    Args:
        frames: One clip as a pipeline returns it, values in [0, 1]: an array
            [frames, 32, 32, 3] (``output_type="np"``) or a tensor [frames, 3, 32, 32] ("pt").
        prompt: What the clip should show.

    Returns:
        The reading and what of it is right.
    """
    wanted = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    return Check(wanted, read_clip(frames))


def read_clip(frames: Tensor | np.ndarray) -> Reading:
    """Read colour, shape and direction of one clip; arguments as for ``check_clip``."""
    pixels = 2 * _channels_first(frames) - 1  # [F, 3, H, W]
    cover = ((pixels.amax(1) - pixels.amin(1)) / SATURATION).clamp(0, 1)
    cover = torch.where(cover > 0.25, cover, 0.0)  # [F, H, W]
    centres, present = _locate(cover)
    if present.float().mean() < FRAMES_PRESENT:
        return Reading(None, None, None)
    return Reading(
        _colour(pixels[present], cover[present]),
        _shape(cover[present], centres[present]),
        _direction(centres[:STRAIGHT_FRAMES], present[:STRAIGHT_FRAMES]),
    )


def _channels_first(frames: Tensor | np.ndarray) -> Tensor:
    if isinstance(frames, np.ndarray):
        wanted, ok = f"[frames, {SIZE}, {SIZE}, 3]", frames.shape[1:] == (SIZE, SIZE, 3)
        pixels = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)) if ok else None
        pixels = None if pixels is None else pixels.permute(0, 3, 1, 2)
    elif isinstance(frames, Tensor):
        wanted, ok = f"[frames, 3, {SIZE}, {SIZE}]", frames.shape[1:] == (3, SIZE, SIZE)
        pixels = frames.detach().float().cpu() if ok else None
    else:
        raise InputError(f"check_clip: got {type(frames).__name__}, wanted an array or a tensor")
    if pixels is None or len(pixels) < 2:
        raise InputError(
            f"check_clip: got {type(frames).__name__} of shape {list(frames.shape)}, wanted one "
            f"clip {wanted} of at least 2 frames; from a batch pass frames[i]"
        )
    if not torch.isfinite(pixels).all():
        raise InputError(
            "check_clip: the clip holds NaN or infinity; check the weights and the dtype of the "
            "model that made it"
        )
    if pixels.min() < -0.01 or pixels.max() > 1.01:
        low, high = pixels.min().item(), pixels.max().item()
        raise InputError(
            f"check_clip: got values from {low:.2f} to {high:.2f}, wanted [0, 1] as a pipeline "
            "returns them; for drawn clips use to_frames"
        )
    return pixels


def _locate(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (x, y) of each frame and whether one compact object of sane size is there."""
    pixel = torch.arange(SIZE) + 0.5
    mass = cover.sum((1, 2)).clamp(min=1e-6)
    x = (cover.sum(1) * pixel).sum(1) / mass
    y = (cover.sum(2) * pixel).sum(1) / mass
    far = (pixel - x[:, None, None]).square() + (pixel[:, None] - y[:, None, None]).square()
    inside = torch.where(far < COMPACT_RADIUS**2, cover, 0.0).sum((1, 2)) / mass
    present = (mass > AREA[0]) & (mass < AREA[1]) & (inside > COMPACT_SHARE)
    return torch.stack([x, y], 1), present


def _colour(pixels: Tensor, cover: Tensor) -> str | None:
    """Nearest palette colour, if near and the same in nearly all frames."""
    weight = (cover > 0.7).float()[:, None]
    mean = (pixels * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)  # [F, 3]
    distance = torch.cdist(mean, torch.tensor(list(PALETTE.values())))
    nearest = distance.argmin(1)
    winner = int(nearest.mode().values)
    agree = (nearest == winner) & (distance[:, winner] < COLOUR_RADIUS)
    return list(PALETTE)[winner] if agree.float().mean() >= FRAMES_PRESENT else None


def _shape(cover: Tensor, centres: Tensor) -> str | None:
    """Template with the largest overlap, each frame at its best place near the centroid."""
    pixel = torch.arange(SIZE) + 0.5
    offsets = torch.arange(-1.5, 1.51, 0.5)
    overlaps = []
    for name in SHAPES:
        # A triangle's centroid lies below the middle of its bounding box.
        lift = 2.0 if name == "triangle" else 0.0
        dx = pixel - (centres[:, 0, None] + offsets)[:, None, :, None, None]
        dy = pixel[:, None] - (centres[:, 1, None] - lift + offsets)[:, :, None, None, None]
        template = shape_cover(name, dx + 0 * dy, dy + 0 * dx)  # [F, 7, 7, H, W]
        seen = cover[:, None, None]
        both = torch.minimum(template, seen).sum((3, 4))
        either = torch.maximum(template, seen).sum((3, 4))
        overlaps.append((both / either).amax((1, 2)).mean())
    best = max(range(len(SHAPES)), key=overlaps.__getitem__)
    return SHAPES[best] if overlaps[best] >= SHAPE_OVERLAP else None


def _direction(centres: Tensor, present: Tensor) -> str | None:
    """Way of the centroid by least squares, if steady, fast enough and along one axis."""
    if present.sum() < max(2, FRAMES_PRESENT * len(present)):
        return None
    places = centres[present]
    time = torch.arange(len(centres))[present].float()
    time = time - time.mean()
    slope = (time[:, None] * (places - places.mean(0))).sum(0) / time.square().sum()
    axis = int(slope.abs().argmax())
    main, other = slope[axis].item(), slope[1 - axis].abs().item()
    if abs(main) < PIXELS_PER_FRAME or other > 0.5 * abs(main):
        return None
    steps = places[1:, axis] - places[:-1, axis]
    if ((steps * main) > 0).float().mean() < FRAMES_PRESENT:
        return None
    return DIRECTIONS[2 * axis + (main > 0)]
