#!/usr/bin/env python
"""Draw docs/images/frame_interleave.png: which frames which block computes.

python docs/images/draw.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from fisopt.passes.frame_interleave import anchor_frames

FRAMES, BLOCKS = 13, 8
COMPUTED, FILLED, DENSE, INK = "#2563a8", "#dbe7f4", "#7a8794", "#20262e"


def schedule(axes: plt.Axes, stride: int, first: int, last: int, title: str) -> None:
    """Draw blocks (rows) over latent frames (columns)."""
    for block in range(BLOCKS):
        sparse = first <= block < last
        kept = anchor_frames(FRAMES, stride, (block - first) % stride) if sparse else range(FRAMES)
        for frame in range(FRAMES):
            colour = DENSE if not sparse else COMPUTED if frame in kept else FILLED
            axes.add_patch(Rectangle((frame + 0.06, block + 0.06), 0.88, 0.88, color=colour))
        axes.text(FRAMES + 0.3, block + 0.5, f"{len(kept)}", va="center", fontsize=8, color=INK)
    axes.text(FRAMES + 0.3, -0.35, "frames\nrun", fontsize=7, color=INK, va="bottom")
    axes.set_xlim(0, FRAMES + 1.6)
    axes.set_ylim(BLOCKS, -0.1)
    axes.set_xticks([f + 0.5 for f in range(0, FRAMES, 2)], [str(f) for f in range(0, FRAMES, 2)])
    axes.set_yticks([b + 0.5 for b in range(BLOCKS)], [f"block {b}" for b in range(BLOCKS)])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("latent frame", fontsize=8)
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=16)
    for spine in axes.spines.values():
        spine.set_visible(False)


def block(axes: plt.Axes) -> None:
    """Draw what becomes of one block call."""
    steps = [
        ("x: every frame", "#ffffff"),
        ("gather the anchor frames of x,\nrotary tables, modulation, masks", "#e6f0e3"),
        ("the block, on a shorter sequence", COMPUTED),
        ("update of the anchors,\ninterpolated in time for the others", "#e6f0e3"),
        ("x + update: every frame", "#ffffff"),
    ]
    for i, (text, colour) in enumerate(steps):
        y = i * 1.7
        ink = "white" if colour == COMPUTED else INK
        box = FancyBboxPatch(
            (0.3, y), 5.4, 1.0, boxstyle="round,pad=0.08", facecolor=colour, edgecolor=INK, lw=0.8
        )
        axes.add_patch(box)
        axes.text(3, y + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
        if i + 1 < len(steps):
            arrow = {"arrowstyle": "->", "color": INK}
            axes.annotate("", (3, y + 1.6), (3, y + 1.1), arrowprops=arrow)
    axes.annotate(
        "",
        (6.0, 7.3),
        (6.0, 0.5),
        arrowprops={"arrowstyle": "->", "color": DENSE, "connectionstyle": "bar,fraction=-0.06"},
    )
    axes.text(6.65, 3.9, "residual stream", rotation=270, va="center", fontsize=8, color=DENSE)
    axes.set_xlim(0, 7)
    axes.set_ylim(8.1, -0.3)
    axes.axis("off")
    axes.set_title("one sparse block", fontsize=9, color=INK, loc="left")


def main() -> None:
    """Draw the picture beside this file."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[1, 1, 0.9])
    schedule(axes[0], 2, 1, 7, "stride 2, first and last block dense")
    schedule(axes[1], 3, 0, 8, "stride 3")
    block(axes[2])
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("frame_interleave.png"), dpi=130, metadata={})
    plt.close(figure)


if __name__ == "__main__":
    main()
