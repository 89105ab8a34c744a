"""The ``fisopt`` command: demo, models, inspect, codegen, calibrate, search, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

import fisopt
from fisopt import models
from fisopt.artefact.loader import Trust
from fisopt.artefact.manifest import Format
from fisopt.calibration import Target
from fisopt.cli import calibrate as _calibrate
from fisopt.cli import demo as _demo
from fisopt.cli import export as _export
from fisopt.cli import help as texts
from fisopt.cli import search as _search
from fisopt.cli import verify as _verify
from fisopt.cli.catalog import models_table, size_of
from fisopt.cli.codegen import emission, emission_view
from fisopt.cli.console import errors, stderr, stdout
from fisopt.cli.expressions import parse_mask, parse_passes
from fisopt.cli.inspection import inspect_model, inspection_view
from fisopt.cli.options import (
    Component,
    Count,
    Device,
    Dtype,
    Frames,
    Height,
    Passes,
    Pipeline,
    Strict,
    Texts,
    Traceback,
    Width,
)
from fisopt.cli.sources import Source

app = typer.Typer(
    name="fisopt",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"fisopt {fisopt.__version__}")
        raise typer.Exit


@app.callback(help=texts.APP)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The ``fisopt`` command."""
    del version


@app.command("models", help=texts.MODELS)
def models_command(traceback: Traceback = False) -> None:
    """List the published models."""
    with errors(traceback):
        rows = []
        with stderr().status("reading the adapters") as status:
            for family in models.families().values():
                for model in family.published:
                    status.update(f"measuring {model.name}")
                    built = models.build(model.name)
                    size = size_of(built, model.height, model.width, model.num_frames)
                    rows.append((family, model, size))
        stdout().print(models_table(rows))


@app.command("inspect", help=texts.INSPECT)
def inspect_command(
    model: Annotated[str, typer.Argument(help="A name that `fisopt models` lists.")],
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    passes: Passes = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps, for passes that treat steps differently.")
    ] = 4,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Print the program text.")] = True,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="In the text, also print each distinct block.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print all of the text, not the first lines.")
    ] = False,
    strict: Strict = True,
    traceback: Traceback = False,
) -> None:
    """Capture, rewrite and cost a published model on the meta device."""
    with errors(traceback):
        parsed = parse_passes(passes or [])
        with stderr().status("starting") as status:
            found = inspect_model(
                model,
                parsed,
                height=height,
                width=width,
                frames=frames,
                steps=steps,
                strict=strict,
                status=status,
            )
        stdout().print(inspection_view(found, text=text, blocks=blocks, full=full))


@app.command("codegen", help=texts.CODEGEN)
def codegen_command(
    model: Annotated[str, typer.Argument(help="A name that `fisopt models` lists.")],
    passes: Passes = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    source: Annotated[
        bool, typer.Option("--source/--no-source", help="Print the sources, not only the list.")
    ] = True,
    strict: Strict = True,
    traceback: Traceback = False,
) -> None:
    """Print the Triton kernels that are emitted for a published model."""
    with errors(traceback):
        parsed = parse_passes(passes or [])
        with stderr().status("starting") as status:
            found = emission(
                model,
                parsed,
                height=height,
                width=width,
                frames=frames,
                strict=strict,
                status=status,
            )
        stdout().print(emission_view(found, source=source))


@app.command("demo", help=texts.DEMO)
def demo_command(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="COLOUR SHAPE moving DIRECTION SPEED over BACKGROUND; repeatable (default: six).",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    passes: Passes = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="inductor compiles both models, eager neither "
            "(default: inductor where there is a C++ compiler).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first clip; each next clip adds one.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    weights: Annotated[
        Path | None,
        typer.Option(help="Another trained testbed, a folder written by save_pretrained."),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Run the testbed dense and optimised, side by side."""
    with errors(traceback):
        settings = _demo.Settings(
            prompts=tuple(prompts or _demo.PROMPTS),
            steps=steps,
            passes=parse_passes(passes or [_demo.PASS]),
            backend=_demo.choose_backend(backend),
            seed=seed,
            guidance=guidance,
            out=out,
            weights=weights,
        )
        _demo.run(settings, stdout(), stderr())


@app.command("calibrate", help=texts.CALIBRATE)
def calibrate_command(
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
    traceback: Traceback = False,
) -> None:
    """Measure redundancy and write a schedule of token reduction."""
    with errors(traceback):
        source = Source(model, device, dtype, height, width, frames)
        settings = _calibrate.Settings(
            source=source,
            prompts=source.prompts(texts_ or (), prompts, seed),
            steps=steps,
            target=Target(target_ratio, target_error),
            stride=_calibrate.parse_stride(stride),
            cache_steps=cache_steps,
            seed=seed,
            component=component,
            out=out,
        )
        _calibrate.run(settings, stdout(), stderr())


@app.command("search", help=texts.SEARCH)
def search_command(
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
    traceback: Traceback = False,
) -> None:
    """Search masks for TileAttention, layer by layer."""
    with errors(traceback):
        source = Source(model, device, dtype, height, width, frames)
        settings = _search.Settings(
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
        _search.run(settings, stdout(), stderr())


@app.command("export", help=texts.EXPORT)
def export_command(
    model: Annotated[
        str,
        typer.Argument(
            help="testbed, or a diffusers pipeline: its folder or its repository; for text a "
            "published name."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file or the folder to write.")],
    passes: Passes = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A recipe in the place of passes.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="pt2, onnx, aoti or text.")] = "pt2",
    portable: Annotated[
        bool,
        typer.Option(
            "--portable/--native",
            help="Plain torch operators, or fisopt's own: faster, and need fisopt to load.",
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
        typer.Option("--dynamic/--static", help="Leave sizes open where the graph allows it."),
    ] = True,
    strict: Strict = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    traceback: Traceback = False,
) -> None:
    """Export an optimised model."""
    with errors(traceback):
        settings = _export.Settings(
            source=Source(model, device, dtype, height, width, frames),
            component=component,
            passes=parse_passes(passes or []),
            recipe=recipe,
            format=cast("Format", form),
            portable=portable,
            steps=steps,
            dynamic=dynamic,
            strict=strict,
            out=out,
            force=force,
        )
        _export.run(settings, stdout(), stderr())


@app.command("verify", help=texts.VERIFY)
def verify_command(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders that were exported.")],
    trust: Annotated[
        str,
        typer.Option(help="data, or code: also take native code and operators of other libraries."),
    ] = "data",
    traceback: Traceback = False,
) -> None:
    """Check artefacts."""
    with errors(traceback):
        whole = _verify.run(paths, cast("Trust", trust), stdout(), stderr())
    if not whole:
        raise typer.Exit(1)
