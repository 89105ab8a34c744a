"""``fisopt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import bars, stderr, stdout
from fisopt.cli.options import (
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    Imports,
    Out,
    Pipeline,
    PromptFile,
    Seed,
    Texts,
    Width,
    main_file,
)


def run(
    model: Pipeline,
    prompts: PromptFile = None,
    texts_: Texts = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="How many prompts (default: those given, or 4)."),
    ] = None,
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            help="A preset, passes with options joined by ' + ', a recipe (.yaml) or dense; "
            "repeatable (default: fis-balanced).",
            show_default=False,
        ),
    ] = None,
    imports: Imports = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    guidance: Guidance = None,
    seed: Seed = 0,
    backend: Annotated[
        str | None,
        typer.Option(
            help="inductor compiles every model, eager none "
            "(default: inductor if there is a C++ compiler).",
            show_default=False,
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="clip, or clip:MODEL (a folder or a repository): how well clip and prompt agree; "
            "downloads 600 MB once (default: the testbed's own scorer; otherwise none).",
            show_default=False,
        ),
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            help="lpips: LPIPS to the dense clip; needs fisopt\\[eval], downloads 233 MB once.",
            show_default=False,
        ),
    ] = None,
    floors: Annotated[
        int, typer.Option(min=0, help="Number of prompts for measuring the noise floors.")
    ] = 2,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("out"),
) -> None:
    """Compare configurations on the same noise."""
    import fisopt
    from fisopt.cli import comparing
    from fisopt.cli.demo import choose_backend
    from fisopt.cli.sources import Source
    from fisopt.errors import FileError
    from fisopt.files import check_free
    from fisopt.page.write import check_installed

    check_installed()
    page = main_file(out, "compare.html")
    check_free(page, force=True, error=FileError)
    given = configs or ["fis-balanced"]
    wanted, chosen = comparing.configurations(given, imports), choose_backend(backend)
    listed = [*(comparing.read_prompts(prompts) if prompts else ()), *(texts_ or ())]
    source = Source(model, device, dtype, height, width, frames)
    judge, beside = comparing.scorer_named(scorer), comparing.measures_named(measures or ())
    texts = source.prompts(listed, count, seed=1)
    pipeline = source.load()
    with bars(stderr()) as progress:
        found = fisopt.compare(
            pipeline,
            texts,
            wanted,
            steps=steps,
            seed=seed,
            backend=chosen,
            arguments=source.arguments(guidance),
            scorer=judge,
            measures=beside,
            floors=floors,
            seen=comparing.progress_of(progress, progress.add_task("clips", total=None)),
        )
    options = {
        "prompts": prompts,
        "prompt": texts_,
        "count": count,
        "config": given,
        "import": imports,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "backend": chosen,
        "scorer": scorer,
        "measure": measures,
        "floors": floors,
        "height": height,
        "width": width,
        "frames": frames,
        "device": device,
        "dtype": dtype,
    }
    stdout().print(found)
    for path in comparing.written(found, page, comparing.repeated("compare", model, options)):
        stdout().print(f"wrote {path}", soft_wrap=True)
