"""Options that several commands take, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DTYPES = ("float32", "bfloat16", "float16")

Passes = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        "-p",
        help="A preset, or a pass with options in quotes, see the examples; repeatable; passes "
        "run in order.",
        show_default=False,
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module with passes of your own; name them MODULE.Pass(...). fisopt imports the "
        "module, which runs its code; repeatable.",
        show_default=False,
    ),
]
Shapes = Annotated[
    str,
    typer.Argument(
        help="A name that `fisopt models` lists, testbed, or a diffusers pipeline: its folder or "
        "its repository; fisopt reads no weights."
    ),
]
Pipeline = Annotated[
    str,
    typer.Argument(help="testbed, or a diffusers pipeline: its folder or its repository."),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many prompts to measure (default: those given, or 4).", show_default=False
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="A prompt to measure on; repeatable.", show_default=False),
]
PromptFile = Annotated[
    Path | None, typer.Option(help="A file of prompts, one per line.", show_default=False)
]
Height = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rows of the video in pixels (default: as published).", show_default=False
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        min=1, help="Columns of the video in pixels (default: as published).", show_default=False
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(min=1, help="Frames of the video (default: as published).", show_default=False),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance (default: the pipeline's own)."),
]
Seed = Annotated[int, typer.Option(help="Seed of the first clip; each next clip adds one.")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, ... (default: the GPU if there is one).", show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(DTYPES)} (default: bfloat16 on a GPU, else float32).",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="Where to write: a folder, or the path of the main file, by its suffix.",
    ),
]
Component = Annotated[
    str | None,
    typer.Option(
        help="Which transformer of a pipeline with two: transformer or transformer_2.",
        show_default=False,
    ),
]
Linear = Annotated[
    str | None,
    typer.Option(
        help="Precision of large linear layers: model, fp8, or fp8-simulated (any device, "
        "without the speed)."
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show the traceback of an error, not only its message.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="Stop if a pass cannot be applied to a block; with --no-strict only report it.",
    ),
]


def main_file(out: Path, name: str) -> Path:
    """The main file that a command writes: ``out`` if it ends as one, else one in that folder."""
    return out if out.suffix == Path(name).suffix else out / name
