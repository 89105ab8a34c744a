"""``fisopt calibrate``: measure where a model's tokens are alike and write a schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fisopt.calibration import Calibration, Target, calibrate
from fisopt.cli.pictures import write_figure
from fisopt.cli.sources import Source
from fisopt.errors import FileError, OptionError
from fisopt.files import check_free, remove
from fisopt.passes.schedule import FEATURES
from fisopt.rewrite.partition import Cells


@dataclass(frozen=True)
class Settings:
    """What to measure and what to choose the thresholds for."""

    source: Source
    prompts: tuple[str, ...]
    steps: int
    target: Target
    stride: Cells
    cache_steps: int
    seed: int
    component: str | None
    out: Path


def parse_stride(text: str) -> Cells:
    """Read ``2,2,2``.

    Raises:
        OptionError: it is not three positive ints.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise OptionError(
            f"stride must be FRAMES,ROWS,COLUMNS, three ints like 2,2,2; got {text!r}"
        )
    frames, rows, columns = (int(part) for part in parts)
    return frames, rows, columns


def run(settings: Settings, out: Console, err: Console) -> None:
    """Measure with a progress bar, write the schedule and its heat map, print what was found."""
    pipeline = settings.source.load()
    disable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    partial = settings.out.with_suffix(".partial.safetensors")
    picture, profiles = (settings.out.with_suffix(end) for end in (".png", ".safetensors"))
    for path in (settings.out, picture, profiles, partial):
        check_free(path, force=True, error=FileError)

    def generate(pipe: Any, index: int) -> None:
        generator = torch.Generator().manual_seed(settings.seed + index)
        given = {"num_inference_steps": settings.steps, "generator": generator}
        given |= {"prompt": settings.prompts[index], "output_type": "latent"}
        pipe(**settings.source.arguments(pipe, **given))
        progress.update(task, completed=(index + 1) * settings.steps)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("steps"), TimeElapsedColumn(), console=err) as progress:
        task = progress.add_task("measuring", total=len(settings.prompts) * settings.steps)
        made = calibrate(
            pipeline,
            generate,
            prompts=len(settings.prompts),
            steps=settings.steps,
            target=settings.target,
            destination_stride=settings.stride,
            cache_steps=settings.cache_steps,
            seed=settings.seed,
            component=settings.component,
            partial=partial,
            about={"pipeline": asdict(settings.source), "prompts": list(settings.prompts)},
            seen=lambda: progress.advance(task),
        )
    write_figure(heat_map(made), picture, dpi=120)
    made.schedule.save(
        settings.out, {f"{f}_profile": made.profiles[f].contiguous() for f in FEATURES}
    )
    remove(partial)
    out.print(summary(made, settings))
    for path in (settings.out, profiles, picture):
        out.print(f"wrote {path}", soft_wrap=True)


def heat_map(made: Calibration) -> Figure:
    """Redundancy over blocks and steps, for queries and for values: bright is redundant."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, feature in zip(figure.subplots(1, 2), FEATURES, strict=True):
            loss = made.profiles[feature][..., made.profiles[feature].shape[-1] // 2]
            drawn = axes.imshow(
                -np.log10(loss.clamp(min=1e-6).numpy()), aspect="auto", origin="lower"
            )
            axes.set_title("queries" if feature == "query" else "keys and values")
            axes.set_xlabel("denoising step")
            axes.set_ylabel("block")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
            figure.colorbar(drawn, ax=axes, label="-log10 of what dropping half of them loses")
    return figure


def summary(made: Calibration, settings: Settings) -> Table:
    """What the schedule costs and what it does to the output."""
    schedule, measured = made.schedule, made.schedule.measured
    grid = "x".join(map(str, measured.grid or ()))
    title = (
        f"{measured.model}, {grid} tokens, {settings.steps} steps, {len(settings.prompts)} prompts"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("chosen for", measured.target)
    for feature in FEATURES:
        limits = ", ".join(f"tier {t} and up {r:g}" for t, r in schedule.thresholds(feature))
        table.add_row(f"{feature} dropped", limits or "nothing")
    table.add_row("mean cost of a visual attention", f"{made.cost:.3f} of the dense one")
    table.add_row("error of one forward call", f"{made.error:.4f} relative L2")
    shapes = len(schedule.pairs(settings.cache_steps))
    table.add_row("distinct attention shapes", str(shapes))
    return table
