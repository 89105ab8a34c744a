"""Export every family with every pass, load it in a fresh process, compare with the module.

    python benchmarks/bench_export.py [CASE ...] [--only FORMAT]

A cell is a form of a family, a set of passes and a format.  All artefacts of a family and a
format are loaded by one fresh process, which has the inputs and the wanted outputs as files; a
portable file is run by a process that imports torch, or onnxruntime and numpy, and nothing else.
Cells that are there already are left out unless ``--again`` is given; those that failed are tried
anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, machine, write

import fisopt
from fisopt import FrameInterleave, TileAttention, TokenReduction

sys.path.insert(0, str(Path(__file__).parent.parent))
from fisopt.artefact.loader import read_manifest
from tests.artefact.fresh import differences, keep_call
from tests.zoo import Case, zoo

GRID = (5, 3, 4)
PASSES: dict[str, list[fisopt.Pass]] = {
    "none": [],
    "FrameInterleave": [FrameInterleave()],
    "TokenReduction": [TokenReduction(0.4, 0.3)],
    "TileAttention": [TileAttention(2)],
    "FrameInterleave+TileAttention": [FrameInterleave(), TileAttention(2)],
}
FORMATS: dict[str, dict[str, Any]] = {
    "pt2 portable": {"format": "pt2"},
    "pt2 native": {"format": "pt2", "portable": False},
    "onnx": {"format": "onnx"},
    "aoti": {"format": "aoti"},
}
LIMITS = {"onnx": 1e-4}


def export_cell(
    optimized: Any, inputs: dict[str, Any], path: Path, options: dict[str, Any], dynamic: bool
) -> dict[str, Any]:
    """Write one artefact with its inputs and the wanted output beside it."""
    start = time.perf_counter()
    suffix = ".onnx" if options["format"] == "onnx" else ".pt2"
    file = path.with_suffix(suffix)
    fisopt.export(optimized, file, **options, example_inputs=inputs, dynamic=dynamic)
    seconds = time.perf_counter() - start
    manifest, _ = read_manifest(file)
    keep_call(optimized, inputs, file)
    return {
        "export_seconds": round(seconds, 1),
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "open_sizes": list(manifest.open_sizes),
    }


def measure(case: Case, formats: list[str], dynamic: bool) -> list[dict[str, Any]]:
    """Every cell of one form of a family."""
    inputs = case.inputs(*GRID, batch=2)
    optimized = fisopt.optimize(case.model, [], inputs, backend="eager")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for label, passes in PASSES.items():
            optimized = fisopt.optimize(optimized, passes, inputs, backend="eager", strict=False)
            for name in formats:
                path = Path(folder) / f"{label}-{name.replace(' ', '-')}"
                row = {"case": case.name, "passes": label, "format": name}
                try:
                    row |= export_cell(optimized, inputs, path, FORMATS[name], dynamic)
                    row["path"] = path
                except fisopt.FisoptError as error:
                    row["error"] = str(error)[:300]
                rows.append(row)
                print(row, flush=True)
        for name in formats:
            mine = [r for r in rows if r["format"] == name and "path" in r]
            for row, found in zip(
                mine, differences(name, [r.pop("path") for r in mine]), strict=True
            ):
                limit = LIMITS.get(name, 1e-5)
                if isinstance(found, str):
                    row["error"] = found
                else:
                    row |= {"difference": found, "limit": limit, "holds": found <= limit}
                print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("cases", nargs="*", help="forms of families (default: all of the zoo)")
    parser.add_argument("--only", choices=FORMATS, action="append", help="formats (default: all)")
    parser.add_argument("--dynamic", action="store_true", help="leave sizes open")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    arguments = parser.parse_args()
    path = RESULTS / "export.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    key = lambda row: (row["case"], row["passes"], row["format"])  # noqa: E731
    held = {key(row): row for row in rows if "error" not in row}
    torch.set_num_threads(1)
    for name in arguments.cases or zoo():
        formats = arguments.only or [f for f in FORMATS if f != "aoti"]
        missing = [f for f in formats if any((name, p, f) not in held for p in PASSES)]
        todo = formats if arguments.again else missing
        if not todo:
            continue
        for row in measure(zoo()[name], todo, arguments.dynamic):
            held[key(row)] = row
        write("export", {"machine": machine(), "rows": list(held.values())})


if __name__ == "__main__":
    main()
