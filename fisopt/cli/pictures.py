"""Pictures of clips: an animated side-by-side and a still sheet, written beside and renamed."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fisopt.files import write

SCALE = 5
FPS = 8
REPEATS = 3
SHEET_FRAMES = 8
SHEET_SCALE = 3
GAP = 12
LINE = 18
BACKGROUND = (24, 26, 30)
INK = (235, 235, 235)
RIGHT, WRONG = (110, 205, 120), (235, 110, 100)
HEAD = 2 * LINE
LARGEST = 13
AMPLIFIED = 4
Colour = tuple[int, int, int]
LEGEND: tuple[tuple[str, Colour], ...] = (
    ("green label: the checker reads what was asked", RIGHT),
    ("red label: it does not", WRONG),
)


@dataclass(frozen=True)
class Caption:
    """What is written over the clips.

    Attributes:
        settings: passes and steps.
        speed_up: of the optimised clips, such as ``"1.52x"``.
    """

    settings: str
    speed_up: str


@dataclass(frozen=True)
class Pair:
    """One prompt's clips, [frames, height, width, 3] with values in [0, 1].

    Attributes:
        prompt: what was asked.
        dense: the clip of the model as it was.
        optimised: the clip of the optimised model from the same noise.
        dense_right: whether the dense clip shows what was asked.
        optimised_right: whether the optimised one does.
    """

    prompt: str
    dense: np.ndarray
    optimised: np.ndarray
    dense_right: bool
    optimised_right: bool


def write_json(figures: dict[str, Any], path: Path) -> Path:
    """Write figures as JSON; an infinite PSNR of equal clips becomes null."""
    return write(path, json.dumps(_finite(figures), indent=2, allow_nan=False) + "\n")


def write_pictures(pairs: list[Pair], folder: Path, caption: Caption) -> list[Path]:
    """Write the animation (GIF, MP4) and the sheet (PNG); return their paths."""
    frames = [animation_frame(pairs, index, caption) for index in range(len(pairs[0].dense))]
    gif = iio.imwrite("<bytes>", frames, extension=".gif", duration=1000 // FPS, loop=0)
    looped, video = np.stack(frames * REPEATS), {"codec": "libx264", "plugin": "pyav"}
    mp4 = iio.imwrite("<bytes>", looped, extension=".mp4", fps=FPS, **video)
    sheet = iio.imwrite("<bytes>", still_sheet(pairs, caption), extension=".png")
    made = {"demo.gif": gif, "demo.mp4": mp4, "sheet.png": sheet}
    return [write(folder / name, data) for name, data in made.items()]


def write_figure(figure: Figure, path: Path, *, dpi: int) -> Path:
    """Write a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return write(path, picture.getvalue())


def animation_frame(pairs: list[Pair], index: int, caption: Caption) -> np.ndarray:
    """One frame of the side-by-side: a pair a cell, dense left, optimised right."""
    height, width = (SCALE * size for size in pairs[0].dense.shape[1:3])
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    cell_width, cell_height = 2 * width + GAP // 2 + GAP, height + 2 * LINE + GAP
    head = HEAD + GAP // 2
    canvas, draw = _canvas(columns * cell_width + GAP, head + rows * cell_height + GAP)
    _head(draw, caption, canvas.width)
    for i, pair in enumerate(pairs):
        x = GAP + i % columns * cell_width
        y = head + i // columns * cell_height
        _write(draw, x, y, pair.prompt, INK, 2 * width)
        for half, (label, clip, ink) in enumerate(_halves(pair, caption)):
            left = x + half * (width + GAP // 2)
            _write(draw, left, y + LINE, label, ink, width)
            canvas.paste(_enlarged(clip[index], SCALE), (left, y + 2 * LINE))
    return np.asarray(canvas)


def still_sheet(pairs: list[Pair], caption: Caption) -> np.ndarray:
    """A sheet of stills: three rows a prompt, dense, optimised, difference; columns are frames."""
    height, width = (SHEET_SCALE * size for size in pairs[0].dense.shape[1:3])
    count = len(pairs[0].dense)
    chosen = np.linspace(0, count - 1, min(count, SHEET_FRAMES)).round().astype(int)
    label, head = 110, HEAD + LINE + GAP
    row = 3 * (height + 2) + LINE + GAP
    size = label + len(chosen) * (width + 2) + GAP, head + len(pairs) * row
    canvas, draw = _canvas(*size)
    _head(draw, caption, canvas.width)
    for column, frame in enumerate(chosen):
        _write(draw, label + column * (width + 2), HEAD + GAP // 2, f"frame {frame}", INK, width)
    for i, pair in enumerate(pairs):
        y = head + i * row
        _write(draw, GAP, y, pair.prompt, INK, size[0])
        difference = (AMPLIFIED * np.abs(pair.optimised - pair.dense)).clip(0, 1)
        shown = [*_halves(pair, caption), (f"difference x {AMPLIFIED}", difference, INK)]
        for third, (name, clip, ink) in enumerate(shown):
            top = y + LINE + third * (height + 2)
            _write(draw, GAP, top + (height - LINE) // 2, name, ink, label)
            for column, frame in enumerate(chosen):
                still = _enlarged(clip[frame], SHEET_SCALE)
                canvas.paste(still, (label + column * (width + 2), top))
    return np.asarray(canvas)


def _halves(pair: Pair, caption: Caption) -> list[tuple[str, np.ndarray, Colour]]:
    """Label, clip and colour of the dense clip and of the optimised one."""
    return [
        ("dense", pair.dense, RIGHT if pair.dense_right else WRONG),
        (f"optimised {caption.speed_up}", pair.optimised, RIGHT if pair.optimised_right else WRONG),
    ]


def _head(draw: ImageDraw.ImageDraw, caption: Caption, width: int) -> None:
    """What was run, and what the colours of labels say."""
    _write(draw, GAP, GAP // 2, caption.settings, INK, width - 2 * GAP)
    x = GAP
    for text, ink in LEGEND:
        _write(draw, x, GAP // 2 + LINE, text, ink, width)
        x += int(draw.textlength(text, font=ImageFont.load_default(LARGEST))) + GAP


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture of even size, as video encoders want it."""
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    return canvas, ImageDraw.Draw(canvas)


def _enlarged(frame: np.ndarray, scale: int) -> Image.Image:
    pixels = Image.fromarray((255 * frame).round().astype(np.uint8))
    size = (pixels.width * scale, pixels.height * scale)
    return pixels.resize(size, Image.Resampling.NEAREST)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, ink: Colour, width: int) -> None:
    """Write one line, in the largest size up to `LARGEST` that fits the width."""
    for size in range(LARGEST, 7, -1):
        font = ImageFont.load_default(size)
        if draw.textlength(text, font=font) <= width:
            break
    draw.text((x, y), text, fill=ink, font=font)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
