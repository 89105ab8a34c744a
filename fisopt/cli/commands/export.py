"""``fisopt export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fisopt.cli.console import stdout
from fisopt.cli.options import (
    Device,
    Dtype,
    Frames,
    Height,
    Imports,
    Linear,
    Out,
    Passes,
    Strict,
    Width,
)
from fisopt.cli.stages import stages

if TYPE_CHECKING:
    from fisopt.artefact.manifest import Format


def run(
    model: Annotated[
        str,
        typer.Argument(
            help="testbed, or a diffusers pipeline: its folder or its repository; for text a "
            "published name."
        ),
    ],
    out: Out,
    passes: Passes = None,
    imports: Imports = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A recipe instead of passes.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="pt2, onnx, aoti or text.")] = "pt2",
    portable: Annotated[
        bool,
        typer.Option(
            "--portable/--native",
            help="Plain torch operators; or fisopt's, which are faster and need fisopt to load.",
        ),
    ] = True,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps, for passes that differ between them."),
    ] = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Annotated[
        str, typer.Option(help="Which transformer of a pipeline, if it has two.")
    ] = "transformer",
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic/--static", help="Keep sizes dynamic where the graph allows it."),
    ] = True,
    linear: Linear = None,
    strict: Strict = True,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Export an optimised model."""
    import fisopt
    from fisopt.artefact.export import check_target
    from fisopt.artefact.loader import read_manifest
    from fisopt.cli import artefacts
    from fisopt.cli.expressions import parse_passes
    from fisopt.cli.sources import Source

    parsed, kind = parse_passes(passes or [], imports), cast("Format", form)
    check_target(out, kind, portable, force=force)
    with stages(f"loading {model}") as status:
        source = Source(model, device, dtype, height, width, frames)
        transformer, inputs = artefacts.load(source, component, kind)
        status.update("capturing and rewriting")
        fast = fisopt.optimize(transformer, parsed, backend="eager", strict=strict, recipe=recipe)
        status.update(f"exporting {kind}")
        path = fisopt.export(
            fast,
            out,
            kind,
            portable,
            example_inputs=inputs,
            steps=steps,
            dynamic=dynamic,
            force=force,
            linear=cast("Any", linear),
        )
    written = [f"wrote {path}"]
    if kind != "text":
        written += artefacts.summary(read_manifest(path)[0])
    for line in written:
        stdout().print(line, soft_wrap=True)
