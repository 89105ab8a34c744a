"""Measured results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tables import speed

from fisopt.comparison.intervals import mean_of

KINDS = {
    "block, anchors keys, residual": ("o", "C0"),
    "block, anchors keys, carry": ("v", "C0"),
    "block, anchors keys, state": ("x", "C0"),
    "block, all keys, residual": ("o", "C1"),
    "attention, anchors keys, residual": ("s", "C2"),
    "attention, all keys, residual": ("s", "C3"),
}


def plot_quality(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw quality against speed, one panel a number of steps."""
    steps = sorted({r["steps"] for r in rows})
    figure, axes = plt.subplots(1, len(steps), figsize=(6 * len(steps), 4.6), sharey=True)
    for axis, n in zip(np.atleast_1d(axes), steps, strict=True):
        for kind, (marker, colour) in KINDS.items():
            mine = [r for r in rows if r["steps"] == n and r["name"].startswith(kind)]
            mine.sort(key=speed)
            axis.plot(
                [speed(r) for r in mine],
                [min(r["psnr"], 45) for r in mine],
                marker=marker,
                color=colour,
                linestyle="-",
                linewidth=0.8,
                label=kind,
            )
        axis.set(title=f"{n} steps", xlabel="speed-up (FLOPs)")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("PSNR against the dense clip, dB")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_peers(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw PSNR with its interval against speed, ours and others', one panel a number of steps."""
    steps = sorted({r["steps"] for r in rows})
    figure, axes = plt.subplots(1, len(steps), figsize=(8 * len(steps), 5.4), squeeze=False)
    for axis, n in zip(axes[0], steps, strict=True):
        for kind, marker, colour in (("ours", "o", "C0"), ("peer", "D", "C7")):
            for row in rows:
                if (row["steps"], row["kind"]) != (n, kind) or speed(row) < 1.01:
                    continue
                found = mean_of(row["psnr"])
                reach = 0.0 if found.high is None else found.high - found.mean
                at = (speed(row), found.mean)
                axis.errorbar(*at, yerr=reach, marker=marker, color=colour, capsize=2)
                axis.annotate(row["name"], at, (4, 4), textcoords="offset points", fontsize=5)
        axis.set(title=f"{n} steps", xlabel="speed-up (FLOPs)")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR against the dense clip, dB")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_students(students: dict[str, Any], path: Path) -> None:
    """Draw how near students come to what they follow, against the clips that they trained on."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    guided = {
        True: (axes[1], "to_4", "4 guided steps"),
        False: (axes[0], "to_50", "50 guided steps"),
    }
    for name, student in students.items():
        axis, key, _ = guided[student["guided"]]
        if not student["curve"]:
            continue
        curve = [{"clips": 0, **student["before"]}, *student["curve"]]
        axis.plot([p["clips"] for p in curve], [p[key] for p in curve], "o-", label=name)
    for axis, key, what in guided.values():
        axis.set(xlabel="training clips", ylabel=f"PSNR to the dense clip of {what}, dB")
        axis.grid(alpha=0.3)
        if key == "to_50":
            teacher = next(iter(students.values()))["baselines"]["dense, 4 steps, guided"][key]
            axis.axhline(teacher, color="C7", ls="--", label="dense, 4 guided steps")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_growth(growth: dict[str, Any], path: Path) -> None:
    """Draw seconds of one attention against the number of frames, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(5.2, 4))
    frames = growth["frames"]
    for name, colour in (("dense", "C7"), ("tile_attention", "C0")):
        seconds, slope = growth[name]["best_s"], growth[name]["slope"]
        axis.loglog(frames, seconds, "o-", color=colour, label=f"{name}, slope {slope:.2f}")
    axis.set_xticks(frames, map(str, frames))
    axis.minorticks_off()
    k, tokens = growth["k"], growth["tokens_per_frame"]
    axis.set(
        xlabel=f"latent frames of {tokens} tokens", ylabel="seconds", title=f"mask {k}:(F-{k})"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
