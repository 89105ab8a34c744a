"""The ``fisopt`` command: demo, models, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fisopt
from fisopt import models
from fisopt.cli import demo as _demo
from fisopt.cli.console import errors, stderr, stdout
from fisopt.cli.expressions import parse_passes
from fisopt.cli.inspection import inspect_model, inspection_view
from fisopt.cli.models import models_table, size_of

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)

Passes = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        "-p",
        help="A preset (fis-a) or a pass with options (FrameInterleave(stride=3)); repeatable, "
        "applied in order.",
        show_default=False,
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show the traceback of an error, not only its message.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="Whether it is an error if a pass cannot be applied to a block; otherwise it is "
        "reported.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"fisopt {fisopt.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make video diffusion transformers faster by rewriting their graphs; nothing is retrained.

    \b
    Examples:
      fisopt demo                                       clips, dense and optimised, into out/
      fisopt models                                     which models are known
      fisopt inspect wan2.2-a14b                        what a model costs, with no weights
      fisopt inspect wan2.2-a14b --pass fis-a           ... and what a preset makes of it

    From Python it is one call: [cyan]fisopt.optimize(pipe, passes=["fis-a"])[/cyan].
    """
    del version


@app.command("models")
def models_command(traceback: Traceback = False) -> None:
    """List the model families, their published models with shapes and sizes, and the presets.

    \b
    Example:
      fisopt models

    The names in the second column are what [cyan]fisopt inspect[/cyan] takes.
    """
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


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="A name that `fisopt models` lists.")],
    height: Annotated[
        int | None, typer.Option(min=1, help="Rows of the video in pixels [published].")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Columns of the video in pixels [published].")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the video [published].")
    ] = None,
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
    """Show what a published model computes and what passes make of it; no weights are needed.

    The model is built from shapes alone, captured as a graph of blocks, rewritten, verified
    and costed; the largest takes about a minute and a few GB.

    \b
    Examples:
      fisopt inspect wan2.2-ti2v-5b
      fisopt inspect wan2.2-a14b --frames 41 --height 480 --width 832
      fisopt inspect hunyuanvideo-1.5 --pass fis-a --no-text
      fisopt inspect mochi-1 --pass 'FrameInterleave(stride=4, kv="all", scope="attention")'
      fisopt inspect ltx-video --pass fis-b --steps 8 --blocks --full > ltx.txt
    """
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


@app.command("demo")
def demo_command(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="COLOUR SHAPE moving DIRECTION SPEED over BACKGROUND; repeatable [six prompts].",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    passes: Passes = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="inductor compiles both models, eager neither "
            "[inductor where there is a C++ compiler].",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first clip; each next clip adds one.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    traceback: Traceback = False,
) -> None:
    """Generate the same clips with the bundled testbed model, dense and optimised, and compare.

    Both run on this machine, from the same noise, both compiled, and are warmed up before they
    are timed.  Writes an animated side-by-side (GIF and MP4), a still sheet (PNG) and the
    figures (JSON).

    \b
    Examples:
      fisopt demo
      fisopt demo --steps 4 --pass fis-a
      fisopt demo --pass 'FrameInterleave(stride=4, kv="all", scope="attention")'
      fisopt demo --prompt "red circle moving left fast over waves" --seed 7

    \b
    Words of a prompt:
      COLOUR      red green blue yellow magenta cyan
      SHAPE       circle square triangle
      DIRECTION   left right up down
      SPEED       slow fast
      BACKGROUND  plain waves stripes checks clouds
    """
    with errors(traceback):
        settings = _demo.Settings(
            prompts=tuple(prompts or _demo.PROMPTS),
            steps=steps,
            passes=parse_passes(passes or [_demo.PASS]),
            backend=_demo.choose_backend(backend),
            seed=seed,
            guidance=guidance,
            out=out,
        )
        _demo.run(settings, stdout(), stderr())
