"""``fisopt calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import stderr, stdout
from fisopt.cli.options import (
    Component,
    Count,
    Device,
    Dtype,
    Frames,
    Height,
    Pipeline,
    Texts,
    Width,
)


def run(
    model: Pipeline,
    prompts: Count = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a generation.")] = 25,
    target_ratio: Annotated[
        float | None,
        typer.Option(
            help="Mean cost of a visual attention, as a share of the dense one; below 1.",
            show_default=False,
        ),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(help="Relative L2 error of one forward call.", show_default=False),
    ] = None,
    texts_: Texts = None,
    stride: Annotated[
        str, typer.Option(help="Cells that keep one token: FRAMES,ROWS,COLUMNS.")
    ] = "2,2,2",
    cache_steps: Annotated[int, typer.Option(min=1, help="Steps that share one match.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise and of the kept tokens.")] = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Component = None,
    out: Annotated[Path, typer.Option(help="The schedule file.")] = Path("out/schedule.yaml"),
) -> None:
    """Measure redundancy and write a schedule of token reduction."""
    from fisopt.calibration import Target
    from fisopt.cli import calibrate
    from fisopt.cli.sources import Source

    source = Source(model, device, dtype, height, width, frames)
    settings = calibrate.Settings(
        source=source,
        prompts=source.prompts(texts_ or (), prompts, seed),
        steps=steps,
        target=Target(target_ratio, target_error),
        stride=calibrate.parse_stride(stride),
        cache_steps=cache_steps,
        seed=seed,
        component=component,
        out=out,
    )
    calibrate.run(settings, stdout(), stderr())
