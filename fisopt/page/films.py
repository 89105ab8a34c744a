"""Clips as sheets of frames: pictures that a page holds inside, as small as it has to be."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fisopt.page.data import DENSE, Film

COLUMNS = 8
"""Frames in a row of a sheet."""
LOSSLESS_PIXELS = 2_000_000
"""So many pixels of all films together are kept as they are."""


@dataclass(frozen=True)
class Form:
    """How films are shown.

    Attributes:
        width: pixels of a row; wider films are scaled.
        frames: frames of a film; of longer ones some are left out, evenly.
        quality: of WebP; None for lossless.
    """

    width: int
    frames: int
    quality: int | None


LARGEST = Form(640, 128, None)
"""What is worth keeping of a film that will be shown."""
LOSSLESS = Form(480, 1024, None)
SMALLER = (
    Form(480, 64, 85),
    Form(384, 49, 80),
    Form(320, 33, 75),
    Form(256, 25, 70),
    Form(192, 17, 60),
    Form(128, 13, 50),
)


def packed(films: Sequence[Film], limit: int) -> tuple[list[dict[str, Any]], str]:
    """Films as JSON values whose pictures take no more than some bytes.

    Args:
        films: the films.
        limit: bytes of the text of all pictures.

    Returns:
        The films, those of the last prompts left out where nothing else helps, and what was done
        to them in words; empty if they are as they were.
    """
    pixels = sum(
        film.frames.shape[0] * film.frames.shape[1] * film.frames.shape[2] for film in films
    )
    forms = (LOSSLESS, *SMALLER) if pixels <= LOSSLESS_PIXELS else SMALLER
    prompts = list(dict.fromkeys(film.prompt for film in films))
    for form in forms:
        made = [_film(film, form) for film in films]
        if _size(made) <= limit:
            return made, "" if form is LOSSLESS else f"films are shown {_words(form)}"
    made = [_film(film, SMALLER[-1]) for film in films]
    while _size(made) > limit and len(prompts) > 1:
        last = prompts.pop()
        made = [film for film in made if film["prompt"] != last]
    shown = [film for film in made if _size(made) <= limit]
    said = f"films of {len(prompts) if shown else 0} prompts are shown, {_words(SMALLER[-1])}"
    return shown, said


def _words(form: Form) -> str:
    return (
        f"as at most {form.frames} frames of at most {form.width} columns, compressed; "
        "the figures are of the whole ones"
    )


def _size(films: Sequence[dict[str, Any]]) -> int:
    sheets = [film[key]["url"] for film in films for key in ("sheet", "flip") if film[key]]
    return sum(map(len, sheets))


def _film(film: Film, form: Form) -> dict[str, Any]:
    return {
        "prompt": film.prompt,
        "configuration": film.configuration,
        "dense": film.configuration == DENSE,
        "sheet": _sheet(film.frames, form),
        "flip": None if film.flip is None else _sheet(_coloured(film.flip), form),
        "note": film.note,
    }


def _coloured(flip: np.ndarray) -> np.ndarray:
    """FLIP errors in the colours that FLIP is shown in: black is none, yellow is the most."""
    from matplotlib import colormaps

    colours: np.ndarray = colormaps["magma"](flip)
    return (255 * colours[..., :3]).round().astype(np.uint8)


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` places, evenly spread, both ends among them."""
    places = np.linspace(0, count - 1, min(count, wanted)).round().astype(int)
    return [int(place) for place in places]


def fitted(frames: np.ndarray, form: Form) -> np.ndarray:
    """Frames in a form: some of them, and scaled.

    Args:
        frames: [frames, height, width, 3] of uint8, or [frames, height, width] in [0, 1].
        form: how many and how large.
    """
    chosen = frames[evenly(len(frames), form.frames)]
    if chosen.shape[2] <= form.width:
        return chosen
    size = (form.width, max(1, round(form.width * chosen.shape[1] / chosen.shape[2])))
    stills = (Image.fromarray(still if still.ndim == 3 else np.float32(still)) for still in chosen)
    return np.stack([np.asarray(still.resize(size, Image.Resampling.BILINEAR)) for still in stills])


def _sheet(frames: np.ndarray, form: Form) -> dict[str, Any]:
    """Frames [frames, height, width, 3], uint8, in rows of one picture."""
    chosen = fitted(frames, form)
    height, width = chosen.shape[1:3]
    columns = min(COLUMNS, len(chosen))
    canvas = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height))
    for index, frame in enumerate(chosen):
        place = (index % columns * width, index // columns * height)
        canvas.paste(Image.fromarray(frame), place)
    data = io.BytesIO()
    how: dict[str, Any] = {"lossless": True} if form.quality is None else {"quality": form.quality}
    canvas.save(data, "webp", method=4, **how)
    text = base64.b64encode(data.getvalue()).decode()
    return {
        "url": f"data:image/webp;base64,{text}",
        "frames": len(chosen),
        "columns": columns,
        "width": width,
        "height": height,
    }
