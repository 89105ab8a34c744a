"""Write what was measured into README.md and docs/quality.md, and draw quality against speed.

    python benchmarks/report.py

Reads benchmarks/results/*.json; only what stands there is written, between the marks
``<!-- results ... -->`` and ``<!-- end of results -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from harness import RESULTS

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "quality.png"
MARKS = re.compile(r"(<!-- results[^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)
KINDS = {
    "block, anchors keys, residual": ("o", "C0"),
    "block, anchors keys, carry": ("v", "C0"),
    "block, anchors keys, state": ("x", "C0"),
    "block, all keys, residual": ("o", "C1"),
    "attention, anchors keys, residual": ("s", "C2"),
    "attention, all keys, residual": ("s", "C3"),
    "preset": ("*", "k"),
    "FirstBlockCache": ("D", "C7"),
}


def load(name: str) -> dict[str, Any] | None:
    """One result file, None if it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def speed(row: dict[str, Any]) -> float:
    """Speed-up of a row by FLOPs over all steps."""
    return float(row["flops_ratio"])


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def quality_table(rows: list[dict[str, Any]], steps: int) -> str:
    """The rows of one number of steps, the fastest first."""
    shown = ["colour %", "shape %", "direction %", "all three %"]
    head = ["speed-up", "one forward", "PSNR dB", "SSIM", *shown]
    mine = sorted((r for r in rows if r["steps"] == steps), key=speed, reverse=True)
    return markdown(
        [f"{steps} steps", *head],
        [
            [
                r["name"],
                f"{speed(r):.2f}x",
                "" if r["one_forward_l2"] is None else f"{r['one_forward_l2']:.3f}",
                "" if r["name"] == "dense" else f"{r['psnr']:.1f}",
                f"{r['ssim']:.3f}",
                *(f"{r[k]:.0f}" for k in ("colour", "shape", "direction", "right")),
            ]
            for r in mine
        ],
    )


def speed_table(result: dict[str, Any]) -> str:
    """Wall-clock on the testbed beside the prediction."""
    return markdown(
        ["configuration", "median ms", "speed-up", "predicted", "reached"],
        [
            [
                r["configuration"],
                r["median_ms"],
                f"{r['ratio']:.2f}x",
                f"{r['predicted']:.2f}x" if r["predicted"] else "",
                f"{100 * r['reached']:.0f} %" if r["reached"] else "",
            ]
            for r in result["rows"]
        ],
    )


def capture_table(result: dict[str, Any]) -> str:
    """Published models captured without weights."""
    labels = list(result["rows"][0]["predicted_ratio"])
    return markdown(
        ["model", "grid", "blocks", "attention share", "capture", *labels],
        [
            [
                r["model"],
                r["grid"],
                r["blocks"],
                f"{r['attention_share']:.0f} %",
                f"{r['seconds']:.0f} s, {r['peak_gib']:.1f} GiB",
                *(f"{ratio:.2f}x" for ratio in r["predicted_ratio"].values()),
            ]
            for r in result["rows"]
        ],
    )


def plot(rows: list[dict[str, Any]]) -> None:
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
                linestyle="none" if kind == "preset" else "-",
                linewidth=0.8,
                label=kind,
            )
        axis.set(title=f"{n} steps", xlabel="speed-up (FLOPs)")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("PSNR against the dense clip, dB")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def fill(path: Path, text: str) -> None:
    """Put text between a page's marks."""
    page = path.read_text()
    if not MARKS.search(page):
        raise SystemExit(f"{path}: no <!-- results --> ... <!-- end of results --> marks")
    path.write_text(MARKS.sub(lambda m: m[1] + text + "\n" + m[2], page))


def host(result: dict[str, Any]) -> str:
    """The machine a result was measured on, in words."""
    m = result["machine"]
    threads = f"{m['threads']} thread{'s' if m['threads'] > 1 else ''}"
    return f"{m['device']}, {threads}, load average {m['load']}, torch {m['torch']}"


def main() -> None:
    quality, wall, capture = load("testbed_quality"), load("testbed_speed"), load("capture")
    detail: list[str] = []
    summary: list[str] = []
    if wall is not None:
        title = (
            f"Wall-clock, {wall['what']}, over `{wall['baseline']}` of the same run ({host(wall)}):"
        )
        detail += [title, "", speed_table(wall), ""]
        summary += detail
    if quality is not None:
        plot(quality["rows"])
        note = (
            f"{quality['clips']} clips, {quality['what']} ({host(quality)}). The first "
            "block is dense unless the name says otherwise. Speed-ups are ratios of FLOPs over all "
            "steps; a cache's is that of blocks run, its own bookkeeping not counted. One forward: "
            "relative L2 error of one call at fixed latents, mean over three noise levels."
        )
        detail += ["![PSNR against speed-up](images/quality.png)", "", note, ""]
        for steps in sorted({r["steps"] for r in quality["rows"]}):
            detail += [quality_table(quality["rows"], steps), ""]
        best = ("dense", "preset", "block, anchors keys, residual", "FirstBlockCache")
        short = [r for r in quality["rows"] if r["steps"] == 4 and r["name"].startswith(best)]
        summary += [f"Quality on the testbed, {quality['clips']} clips:", ""]
        summary += [quality_table(short, 4), ""]
    if capture is not None:
        text = "Published shapes, captured and costed without weights (ratios of FLOPs):"
        summary += [text, "", capture_table(capture), ""]
    fill(ROOT / "docs" / "quality.md", "\n".join(detail).rstrip())
    fill(ROOT / "README.md", "\n".join(summary).rstrip())


if __name__ == "__main__":
    main()
