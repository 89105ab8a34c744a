"""``fisopt codegen``."""

from __future__ import annotations

from typing import Annotated

import typer

from fisopt.cli.console import stdout
from fisopt.cli.options import Frames, Height, Imports, Passes, Shapes, Strict, Width
from fisopt.cli.stages import stages


def run(
    model: Shapes,
    passes: Passes = None,
    imports: Imports = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    source: Annotated[
        bool, typer.Option("--source/--no-source", help="Print the sources, not only the list.")
    ] = True,
    strict: Strict = True,
) -> None:
    """Print the Triton kernels that are emitted for a model."""
    from fisopt.cli.emission import emission, emission_view
    from fisopt.cli.expressions import parse_passes
    from fisopt.cli.sources import Source

    parsed = parse_passes(passes or [], imports)
    shapes = Source(model, height=height, width=width, frames=frames)
    with stages("starting") as shown:
        found = emission(shapes, parsed, strict=strict, stages=shown)
    stdout().print(emission_view(found, source=source))
