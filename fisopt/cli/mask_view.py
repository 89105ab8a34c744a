"""What ``fisopt search`` shows of the masks that it chose."""

from __future__ import annotations

from rich.table import Table

from fisopt.cli.mask_pictures import kept_tiles
from fisopt.tuning.mask_search import MaskSearch


def masks_table(search: MaskSearch) -> Table:
    """The mask of every block, and what the others would do to it."""
    table, found, frames = search.table, search.measurements, search.frames
    worst = found.worst()
    view = Table(
        title="Masks by block; errors are the largest over the calls", title_justify="left"
    )
    view.add_column("block", style="cyan")
    view.add_column("mask")
    for header in ("density", "sparsity", "error"):
        view.add_column(header, justify="right")
    for candidate in found.candidates:
        view.add_column(candidate.label, justify="right", style="dim")
    for row, (path, mask) in enumerate(table.items()):
        density = float(kept_tiles(mask, frames).mean())
        error = 0.0 if mask is None else worst[row, found.candidates.index(mask)]
        view.add_row(
            path,
            "dense" if mask is None else str(mask),
            f"{density:.3f}",
            f"{1 - density:.3f}",
            f"{error:.3f}",
            *(f"{value:.3f}" for value in worst[row]),
        )
    return view
