"""The rows of a device as one page of tables."""

from __future__ import annotations

import json
from pathlib import Path

from device import Row

from fisopt.files import write

_KERNEL = ("shape", "kept", "implementation", "density", "ms", "tflops", "of_dense_rate", "error")
COLUMNS: dict[str, tuple[str, ...]] = {
    "ceilings": ("what", "ms", "tflops", "gb_s"),
    "forward": (
        *("model", "layers", "of_layers", "tokens", "configuration", "alone", "seconds", "ratio"),
        *("predicted", "reached", "roofline", "of_roofline", "seconds_all_layers", "peak_gib"),
        "rounds",
    ),
    "tile_attention": _KERNEL,
    "match_tokens": _KERNEL,
    "reduce_attend_restore": _KERNEL,
    "emitted": ("model", "kernel", "implementation", "us", "gb_s", "of_reference", "error"),
}
"""What is shown of each file, in the order of the page."""

NOTE = (
    "Random weights and operands, bfloat16. Alone: one timing after it was compiled; seconds and "
    "ratio: in turns with the dense model of the same process. Rows of several calls may be of "
    "several devices of one kind; a ratio is of one."
)


def table(name: str, rows: list[Row]) -> str:
    """The rows of one file as a markdown table; columns in which nothing stands are left out."""
    shown = [c for c in (*COLUMNS[name], "failed") if any(row.get(c) is not None for row in rows)]
    lines = ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    for row in rows:
        cells = (row.get(column) for column in shown)
        lines.append("| " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def write_page(folder: Path) -> Path:
    """Write ``report.md`` beside the rows of a device."""
    text, title = "", ""
    for name in COLUMNS:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        held = json.loads(path.read_text())
        title = ", ".join(f"{key} {value}" for key, value in held["machine"].items())
        text += f"\n## {name}\n\n{table(name, held['rows'])}"
    return write(folder / "report.md", f"# {title}\n\n{NOTE}\n{text}")
