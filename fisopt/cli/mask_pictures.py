"""Pictures of masks: frames by frames, over the attention that they cut, and density per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fisopt.cli.pictures import write_figure
from fisopt.passes.tiling.mask_table import MaskTable
from fisopt.passes.tiling.masks import FrameMask

COLUMNS = 5
KEPT, SKIPPED, INK = "#2563a8", "#dbe7f4", "#20262e"
VEIL = ListedColormap([(1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 0.72)])


def kept_tiles(mask: FrameMask | None, frames: int) -> np.ndarray:
    """[frames, frames]: the share of heads that keep each tile; None keeps all."""
    if mask is None:
        return np.ones((frames, frames))
    table = mask.table(frames).double().numpy()
    return table if table.ndim == 2 else table.mean(axis=0)


def write_mask_pictures(
    table: MaskTable, frames: int, maps: Mapping[str, Tensor], folder: Path
) -> list[Path]:
    """Write masks.png, attention.png and density.png; return their paths.

    Args:
        table: a mask for every block.
        frames: latent frames to draw the masks for.
        maps: attention of each frame to each, by block path, see `frame_maps`; blocks without one
            (no video self-attention) are left out of the pictures.
        folder: where to write.
    """
    rows = [(path, mask) for path, mask in table.items() if path in maps]
    figures = {
        "masks.png": _masks(rows, frames),
        "attention.png": _attention(rows, frames, maps),
        "density.png": _density(rows, frames),
    }
    return [write_figure(figure, folder / name, dpi=130) for name, figure in figures.items()]


def _grid(rows: Sequence[tuple[str, FrameMask | None]], title: str) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.35 * lines + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9, color=INK)
    cells = [figure.add_subplot(lines, columns, i + 1) for i in range(len(rows))]
    for cell, (path, mask) in zip(cells, rows, strict=True):
        cell.set_title(f"{path}: {'dense' if mask is None else mask}", fontsize=7, color=INK)
        cell.tick_params(labelsize=6, length=0)
        for axis in (cell.xaxis, cell.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
    return figure, cells


def _masks(rows: Sequence[tuple[str, FrameMask | None]], frames: int) -> Figure:
    figure, cells = _grid(rows, "kept tiles (blue): query frames down, key frames across")
    colours = ListedColormap([SKIPPED, KEPT])
    for cell, (_, mask) in zip(cells, rows, strict=True):
        cell.imshow(kept_tiles(mask, frames) > 0, cmap=colours, vmin=0, vmax=1)
    return figure


def _attention(
    rows: Sequence[tuple[str, FrameMask | None]], frames: int, maps: Mapping[str, Tensor]
) -> Figure:
    figure, cells = _grid(
        rows, "attention of query frames (down) to key frames, skipped tiles pale"
    )
    top = max(float(maps[path].max()) for path, _ in rows)
    bottom = max(min(float(maps[path].min()) for path, _ in rows), top / 1e3)
    scale = LogNorm(vmin=bottom, vmax=top)
    for cell, (path, mask) in zip(cells, rows, strict=True):
        shown = np.clip(maps[path].numpy(), bottom, None)
        drawn = cell.imshow(shown, cmap="viridis", norm=scale)
        cell.imshow(kept_tiles(mask, frames) == 0, cmap=VEIL, vmin=0, vmax=1)
    bar = figure.colorbar(drawn, ax=cells, shrink=0.6, aspect=30)
    bar.set_label("share of attention", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return figure


def _density(rows: Sequence[tuple[str, FrameMask | None]], frames: int) -> Figure:
    density = [float(kept_tiles(mask, frames).mean()) for _, mask in rows]
    figure = Figure(figsize=(max(4.0, 0.3 * len(rows) + 1.5), 2.6), layout="constrained")
    cell = figure.add_subplot()
    cell.bar(range(len(rows)), density, color=KEPT)
    cell.axhline(float(np.mean(density)), color=INK, lw=0.8, ls="--")
    cell.set_ylim(0, 1)
    cell.set_xticks(range(len(rows)), [path.rsplit(".", 1)[-1] for path, _ in rows], fontsize=6)
    cell.set_xlabel("video block", fontsize=8)
    cell.set_ylabel("density of its tiles", fontsize=8)
    cell.tick_params(labelsize=6)
    cell.set_title(f"mean density {np.mean(density):.3f}", fontsize=8, color=INK)
    return figure
