"""``fisopt choose``."""

from __future__ import annotations

from typing import Annotated

import typer

from fisopt.cli.console import stderr, stdout
from fisopt.cli.options import Frames, Height, Published, Width


def run(
    model: Published,
    speed: Annotated[float, typer.Option(min=1, help="How many times as fast as dense.")] = 2.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
) -> None:
    """Name the preset to take for a speed, and why."""
    from fisopt.cli.choosing import chosen_view, price_presets

    video = {"height": height, "width": width, "frames": frames}
    with stderr().status("starting") as status:
        found = price_presets(model, steps, **video, seen=status.update)
    stdout().print(chosen_view(found, speed, steps))
