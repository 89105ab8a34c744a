"""``fisopt search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import stdout, steps_bar
from fisopt.cli.options import (
    Component,
    Count,
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    Out,
    Pipeline,
    Seed,
    Texts,
    Width,
    main_file,
)
from fisopt.cli.stages import stages


def run(
    model: Pipeline,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 change of a block's output by a mask; not the paper's r."
        ),
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(
            "--speed",
            "--target-ratio",
            help="Instead of --threshold: how many times cheaper, in FLOPs; more than 1.",
        ),
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
    steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps; the search measures all.")
    ] = 4,
    guidance: Guidance = None,
    seed: Seed = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Component = None,
    out: Out = Path("out"),
) -> None:
    """Search masks for TileAttention, layer by layer."""
    import fisopt
    from fisopt.cli.expressions import parse_mask
    from fisopt.cli.mask_pictures import write_mask_pictures
    from fisopt.cli.mask_view import masks_table
    from fisopt.cli.sources import Source
    from fisopt.tuning.mask_search import check_bound

    table = main_file(out, "masks.json")
    out = table.parent
    check_bound(threshold, target_ratio)  # refused before a large model is loaded
    masks = tuple(parse_mask(text) for text in candidates or [])
    source = Source(model, device, dtype, height, width, frames)
    texts = source.prompts(texts_ or (), prompts, seed=1)
    pipeline = source.load()
    with steps_bar("measuring masks, then all together", 2 * steps * len(texts)) as seen:
        found = fisopt.search_masks(
            pipeline,
            texts,
            steps=steps,
            threshold=threshold,
            target_ratio=target_ratio,
            candidates=masks,
            seed=seed,
            component=component,
            arguments=source.arguments(guidance),
            progress=out / "search.json",
            seen=seen,
        )
    stdout().print(masks_table(found))
    said = found.table.measured
    lines = [
        f"predicted speed-up {said['predicted_speed_up']:.3f}x; all masks together change the "
        f"model's result by {said['joint_error_mean']:.3f} on average, "
        f"{said['joint_error_max']:.3f} at most"
    ]
    written = [found.table.save(table)]
    with stages("writing pictures"):
        written += write_mask_pictures(found.table, found.frames, found.maps, out)
    for line in [*lines, *(f"wrote {path}" for path in written)]:
        stdout().print(line)
