"""``fisopt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import stderr, stdout
from fisopt.cli.options import (
    Imports,
    Out,
    Passes,
    Seed,
)


def run(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="COLOUR SHAPE moving DIRECTION SPEED over BACKGROUND; repeatable (default: six).",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    passes: Passes = None,
    imports: Imports = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="inductor compiles both models, eager neither "
            "(default: inductor if there is a C++ compiler).",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 2.0,
    out: Out = Path("out"),
    weights: Annotated[
        Path | None,
        typer.Option(help="Another trained testbed: a folder that save_pretrained wrote."),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, max=64, help="Number of processes that share each clip.")
    ] = 1,
) -> None:
    """Run the testbed dense and optimised, side by side."""
    from fisopt.cli import demo
    from fisopt.cli.expressions import parse_passes

    settings = demo.Settings(
        tuple(prompts or demo.PROMPTS),
        steps,
        parse_passes(passes or [demo.PASS], imports),
        demo.choose_backend(backend),
        seed,
        guidance,
        out,
        weights,
    )
    if ranks == 1:
        demo.run(settings, stdout(), stderr())
    else:
        from fisopt.cli import ranks_demo

        ranks_demo.run(settings, ranks)
