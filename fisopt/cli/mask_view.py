"""What ``fisopt search`` shows of the masks that it chose."""

from __future__ import annotations

from rich import box
from rich.table import Table

from fisopt.cli.mask_pictures import kept_tiles
from fisopt.passes.tiling.masks import FrameMask
from fisopt.tuning.mask_search import MaskSearch

LONGEST = 36
"""Characters of a mask that a row shows."""


def masks_table(search: MaskSearch) -> Table:
    """The mask of every block, in five columns that fit 80 characters."""
    table, found, frames = search.table, search.measurements, search.frames
    worst = found.worst()
    view = Table(title="Masks by block", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("block", style="cyan", no_wrap=True)
    view.add_column("mask", overflow="fold")
    for header in ("kept", "error", "next sparser"):
        view.add_column(header, justify="right", no_wrap=True)
    for row, (path, mask) in enumerate(table.items()):
        kept = [float(kept_tiles(c, frames).mean()) for c in found.candidates]
        density = float(kept_tiles(mask, frames).mean())
        error = 0.0 if mask is None else worst[row, found.candidates.index(mask)]
        sparser = [(share, i) for i, share in enumerate(kept) if share < density]
        following = f"{worst[row, max(sparser)[1]]:.3f}" if sparser else "none"
        said = "dense" if mask is None else short(mask)
        view.add_row(path, said, f"{density:.1%}", f"{error:.3f}", following)
    view.caption = (
        "kept: share of frame pairs; error: the largest over the calls, relative L2; next sparser: "
        "the error with the next sparser candidate (search.json has those of all)"
    )
    view.caption_justify = "left"
    return view


def short(mask: FrameMask) -> str:
    """A mask as one writes it, a long table cut."""
    text = str(mask)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
