"""``fisopt choose``."""

from __future__ import annotations

from typing import Annotated

import typer

from fisopt.cli.console import stdout
from fisopt.cli.options import Frames, Height, Shapes, Width
from fisopt.cli.stages import stages


def run(
    model: Shapes,
    speed: Annotated[float, typer.Option(min=1, help="How many times as fast as dense.")] = 2.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
) -> None:
    """Name the preset to use for a speed, and why."""
    from fisopt.cli.choosing import chosen_view, price_presets
    from fisopt.cli.sources import Source

    source = Source(model, height=height, width=width, frames=frames)
    with stages("starting") as shown:
        found = price_presets(source, steps, seen=shown.update)
    stdout().print(chosen_view(found, speed, steps))
