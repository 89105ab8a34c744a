"""``fisopt tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import counting_bar, stdout
from fisopt.cli.options import (
    Count,
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    Imports,
    Linear,
    Out,
    Passes,
    Pipeline,
    Seed,
    Texts,
    Width,
    main_file,
)
from fisopt.cli.stages import stages


def run(
    model: Pipeline,
    target: Annotated[
        str,
        typer.Option(help="2x, 350ms (of one clip), error<=0.1 or psnr>=28 (of the latents)."),
    ],
    minutes: Annotated[float, typer.Option(help="Time limit of the search.")] = 15.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a generation.")] = 4,
    prompts: Count = None,
    texts_: Texts = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    costs: Annotated[
        str | None,
        typer.Option(
            help="Unit of a speed-up: flops, or inductor or eager: seconds, each stage timed once "
            "with that backend. Default: flops; inductor for a target in ms."
        ),
    ] = None,
    linear: Linear = None,
    passes: Passes = None,
    imports: Imports = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show how large the search is; run nothing."),
    ] = False,
    out: Out = Path("out"),
) -> None:
    """Choose passes by a target."""
    import fisopt
    from fisopt import models
    from fisopt.cli.comparing import repeated
    from fisopt.cli.expressions import parse_passes
    from fisopt.cli.sources import Source
    from fisopt.cli.tuning_view import front_table, rehearsed_table, tuned_table
    from fisopt.codegen.kernel_options import KernelOptions
    from fisopt.errors import FileError
    from fisopt.files import check_free
    from fisopt.page.write import has_packages, write_page
    from fisopt.tuning.goal import Goal
    from fisopt.tuning.own import check_own
    from fisopt.tuning.tune import check_minutes, rehearse_program, unit_for
    from fisopt.tuning.tuned_page import page_of

    rounding = KernelOptions(linear).linear  # type: ignore[arg-type]  # it checks
    unit = unit_for(costs, Goal.of(target), rounding)  # refused before a large model is loaded
    check_minutes(minutes)
    own = check_own(parse_passes(passes or (), imports))
    source = Source(model, device, dtype, height, width, frames)
    texts = source.prompts(texts_ or (), prompts, seed=1)
    arguments = source.arguments(guidance)
    out = main_file(out, "recipe.yaml")
    measured = out.with_suffix(".measured.json")
    for path in (out, measured):
        check_free(path, force=True, error=FileError)
    if dry_run and model.lower() in models.published():
        with stages("capturing"):
            inputs = models.example_inputs(model, height=height, width=width, num_frames=frames)
            program = fisopt.capture(models.build(model), inputs)
            found = rehearse_program(program, steps=steps, target=target, passes=own)
        stdout().print(rehearsed_table(found))
        return
    pipeline = source.load()
    if dry_run:
        with stages("capturing"):
            found = fisopt.rehearse(
                pipeline, texts, steps=steps, target=target, arguments=arguments, passes=own
            )
        stdout().print(rehearsed_table(found))
        return
    with counting_bar(f"measuring, {minutes:g} minutes at most") as seen:
        made = fisopt.tune(
            pipeline,
            target,
            texts,
            steps=steps,
            minutes=minutes,
            seed=seed,
            arguments=arguments,
            costs=unit,
            linear=rounding,
            passes=own,
            progress=measured,
            seen=seen,
        )
    written = [*made.save(out, force=True).values(), measured]
    if has_packages():
        options = {"target": target, "minutes": minutes, "steps": steps, "seed": seed}
        options |= {"costs": unit, "linear": linear}
        options |= {"pass": list(passes or ()), "import": list(imports or ())}
        shape = {"height": height, "width": width, "frames": frames, "guidance": guidance}
        command = repeated("tune", model, {**options, "prompt": list(texts), **shape})
        written.append(write_page(page_of(made, pipeline, command), out.with_suffix(".html")))
    stdout().print(tuned_table(made))
    stdout().print(front_table(made))
    for line in (*made.notes, *(f"wrote {path}" for path in written)):
        stdout().print(line, soft_wrap=True)
