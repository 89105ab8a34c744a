"""``fisopt codegen``."""

from __future__ import annotations

from typing import Annotated

import typer

from fisopt.cli.console import stderr, stdout
from fisopt.cli.options import Frames, Height, Imports, Passes, Published, Strict, Width


def run(
    model: Published,
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
    """Print the Triton kernels that are emitted for a published model."""
    from fisopt.cli.emission import emission, emission_view
    from fisopt.cli.expressions import parse_passes

    parsed = parse_passes(passes or [], imports)
    video = {"height": height, "width": width, "frames": frames}
    with stderr().status("starting") as status:
        found = emission(model, parsed, **video, strict=strict, status=status)
    stdout().print(emission_view(found, source=source))
