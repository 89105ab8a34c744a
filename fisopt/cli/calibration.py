"""What ``fisopt calibrate`` shows: a heat map, and what the schedule costs."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from fisopt.counted import counted
from fisopt.passes.reduction.features import FEATURES
from fisopt.tuning.calibrate import Calibration


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


def summary(made: Calibration, cache_steps: int) -> Table:
    """What the schedule costs and what it does to the output."""
    schedule, measured = made.schedule, made.schedule.measured
    grid = "x".join(map(str, measured.grid or ()))
    run = f"{counted(schedule.steps, 'step')}, {counted(measured.prompts, 'prompt')}"
    title = f"{measured.model}, {grid} tokens, {run}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("chosen for", measured.target)
    for feature in FEATURES:
        limits = ", ".join(f"tier {t} and up {r:g}" for t, r in schedule.thresholds(feature))
        table.add_row(f"{feature} dropped", limits or "nothing")
    table.add_row("mean cost of a visual attention", f"{made.cost:.3f} of the dense one")
    table.add_row("error of one forward call", f"{made.error:.4f} relative L2")
    shapes = len(schedule.pairs(cache_steps))
    table.add_row("distinct attention shapes", str(shapes))
    return table
