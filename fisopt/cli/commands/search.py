"""``fisopt search``."""

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
    threshold: Annotated[
        float | None,
        typer.Option(
            help="How far a mask may move what its block returns, relative L2; not the paper's r."
        ),
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(help="Instead: how many times cheaper, in FLOPs; 1 or more."),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            help="A mask to try: k, or a mask with options in quotes; repeatable (default: tile "
            "masks, sliding windows and radial decays).",
            show_default=False,
        ),
    ] = None,
    prompts: Count = None,
    texts_: Texts = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps, all measured.")] = 4,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance (default: the pipeline's own)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first clip; each next clip adds one.")] = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Component = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the pictures.")] = Path("out"),
) -> None:
    """Search masks for TileAttention, layer by layer."""
    from fisopt.cli import search
    from fisopt.cli.expressions import parse_mask
    from fisopt.cli.sources import Source

    source = Source(model, device, dtype, height, width, frames)
    settings = search.Settings(
        source=source,
        threshold=threshold,
        target_ratio=target_ratio,
        candidates=tuple(parse_mask(text) for text in candidates or []),
        prompts=source.prompts(texts_ or (), prompts, seed=1),
        steps=steps,
        guidance=guidance,
        seed=seed,
        component=component,
        out=out,
    )
    search.run(settings, stdout(), stderr())
