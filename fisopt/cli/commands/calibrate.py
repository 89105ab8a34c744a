"""``fisopt calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from fisopt.cli.console import stdout, steps_bar
from fisopt.cli.options import (
    Component,
    Count,
    Device,
    Dtype,
    Frames,
    Height,
    Out,
    Pipeline,
    Texts,
    Width,
    main_file,
)


def run(
    model: Pipeline,
    prompts: Count = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a generation.")] = 25,
    target_ratio: Annotated[
        float | None,
        typer.Option(
            "--keep",
            "--target-ratio",
            help="Mean share of a visual attention's cost to keep; below 1.",
            show_default=False,
        ),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(
            help="Instead of --keep: relative L2 error of one forward call.", show_default=False
        ),
    ] = None,
    texts_: Texts = None,
    stride: Annotated[
        str, typer.Option(help="Size of a cell with one destination: FRAMES,ROWS,COLUMNS.")
    ] = "2,2,2",
    cache_steps: Annotated[int, typer.Option(min=1, help="Steps that share one match.")] = 1,
    search: Annotated[
        str, typer.Option(help="Where dropped tokens look for destinations: near or all.")
    ] = "near",
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the destinations.")] = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Component = None,
    out: Out = Path("out"),
) -> None:
    """Measure redundancy and write a schedule of token reduction."""
    import fisopt
    from fisopt.checked import choice
    from fisopt.cli.calibration import heat_map, summary
    from fisopt.cli.expressions import parse_stride
    from fisopt.cli.pictures import write_figure
    from fisopt.cli.sources import Source
    from fisopt.errors import FileError
    from fisopt.files import check_free, remove
    from fisopt.passes.reduction.features import FEATURES
    from fisopt.passes.reduction.reduced_block import Search
    from fisopt.tuning.calibrate import Target

    out = main_file(out, "schedule.yaml")
    source, cells = Source(model, device, dtype, height, width, frames), parse_stride(stride)
    texts = source.prompts(texts_ or (), prompts, seed)
    choice("calibrate: search", search, get_args(Search))
    Target(target_ratio, target_error)  # refused before a large model is loaded
    ends = (".png", ".safetensors", ".partial.json")
    picture, profiles, partial = (out.with_suffix(end) for end in ends)
    for path in (out, picture, profiles, partial):
        check_free(path, force=True, error=FileError)
    pipeline = source.load()
    with steps_bar("measuring", steps * len(texts)) as seen:
        made = fisopt.calibrate(
            pipeline,
            texts,
            steps=steps,
            target_ratio=target_ratio,
            target_error=target_error,
            destination_stride=cells,
            cache_steps=cache_steps,
            search=search,  # type: ignore[arg-type]  # calibrate says which there are
            seed=seed,
            component=component,
            arguments=source.size,
            progress=partial,
            seen=seen,
        )
    write_figure(heat_map(made), picture, dpi=120)
    made.schedule.save(out, {f"{f}_profile": made.profiles[f].contiguous() for f in FEATURES})
    remove(partial)
    stdout().print(summary(made, cache_steps))
    for path in (out, profiles, picture):
        stdout().print(f"wrote {path}", soft_wrap=True)
