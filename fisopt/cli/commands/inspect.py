"""``fisopt inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from fisopt.cli.console import stdout
from fisopt.cli.options import Frames, Height, Imports, Passes, Shapes, Strict, Width
from fisopt.cli.stages import stages


def run(
    model: Shapes,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    passes: Passes = None,
    imports: Imports = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps, for passes that treat steps differently.")
    ] = 4,
    ranks: Annotated[
        str | None,
        typer.Option(
            help="Also predict the time of a call on these numbers of GPUs in bfloat16: 1,2,4,8.",
            show_default=False,
        ),
    ] = None,
    link: Annotated[str, typer.Option(help="Bandwidth from a GPU to the others.")] = "350GB/s",
    text: Annotated[bool, typer.Option("--text/--no-text", help="Print the program text.")] = True,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="In the text, also print each distinct block.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print the whole text, not only the first lines.")
    ] = False,
    strict: Strict = True,
) -> None:
    """Capture, rewrite and cost a model on the meta device."""
    import torch

    from fisopt.cli.expressions import parse_passes
    from fisopt.cli.inspection import inspect_model, inspection_view
    from fisopt.cli.ranks_view import bytes_a_second, counts, ranks_table
    from fisopt.cli.sources import Source

    many, rate = counts(ranks) if ranks is not None else [], bytes_a_second(link)
    parsed = parse_passes(passes or [], imports)
    dtype = torch.bfloat16 if many else torch.float32  # what is sent is of two bytes, as on GPUs
    source = Source(model, height=height, width=width, frames=frames)
    with stages("starting") as shown:
        found = inspect_model(source, parsed, steps=steps, strict=strict, stages=shown, dtype=dtype)
        table = ranks_table(found.optimised, many, rate) if many else None
    if table is not None:
        stdout().print(table)
    stdout().print(inspection_view(found, text=text, blocks=blocks, full=full))
