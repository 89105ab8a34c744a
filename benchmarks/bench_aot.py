"""What every kernel becomes on sm_80, sm_90 and sm_100, compiled without a GPU.

    python benchmarks/bench_aot.py [--arch 90 ...] [--kernel tile_attention ...] [--default]

One row a kernel, shape class, config and architecture: registers, spills, shared memory and
tensor-core instructions of the cubin, and for attention the waits and barriers of its main loop a
64 keys.  Rows that are there already are kept: interrupted, it goes
on where it stopped.  At the end it checks what must hold and exits with an error if it does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from tqdm import tqdm

from fisopt.codegen.aot import ARCHITECTURES, SHARED_LIMIT, compile_ahead
from fisopt.codegen.aot_cases import Case, cases
from fisopt.errors import LoweringError

OUT = Path(__file__).parent / "results" / "aot.json"
Row = dict[str, Any]
KEY = ("kernel", "shape_class", "config", "arch")


def label(config: Any) -> str:
    """A config in one line."""
    sizes = "x".join(str(v) for v in config.kwargs.values() if not isinstance(v, bool))
    traits = "".join(f", {name.lower()}" for name, v in config.kwargs.items() if v is True)
    return f"{sizes}, {config.num_warps} warps, {config.num_stages} stages{traits}"


def todo(options: argparse.Namespace) -> Iterator[tuple[Case, Any, int]]:
    """Each case, config and architecture that is asked for."""
    for case in cases():
        if options.kernel and case.kernel not in options.kernel:
            continue
        if options.shape_class and case.shape_class not in options.shape_class:
            continue
        for arch in options.arch:
            for config in case.configs:
                wanted = label(config) == label(case.default(arch))
                if possible(config, arch) and (wanted or not options.default):
                    yield case, config, arch


def possible(config: Any, arch: int) -> bool:
    """Whether an architecture has what a config uses."""
    if config.kwargs.get("OVERLAPPED"):
        return arch == 90
    return arch >= 90 or not config.kwargs.get("DESCRIPTORS")


def compiled(case: Case, config: Any, arch: int) -> Row:
    """Compile once, and say what came out or why nothing did."""
    row = identity(case, config, arch)
    start = time.perf_counter()
    try:
        row |= dataclasses.asdict(compile_ahead(case.prepare(config), arch))
        if keys := config.kwargs.get("BLOCK_N"):
            loop = row["loop"]
            row["per_64_keys"] = {k: round(64 / keys * loop[k], 2) for k in ("waits", "barriers")}
    except LoweringError as error:
        row["refused"] = str(error)
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def identity(case: Case, config: Any, arch: int) -> Row:
    names = {"kernel": case.kernel, "shape_class": case.shape_class}
    return {**names, "config": label(config), "arch": f"sm_{arch}"}


def mark(rows: list[Row]) -> None:
    """Say which rows are the choices without a measurement."""
    defaults = {
        tuple(identity(case, case.default(arch), arch).values())
        for case in cases()
        for arch in ARCHITECTURES
    }
    for row in rows:
        row["default"] = tuple(row[k] for k in KEY) in defaults


def problems(rows: list[Row]) -> list[str]:
    """What must hold and does not."""
    found, groups = [], {}
    for row in rows:
        if "refused" not in row:
            place = f"{row['kernel']} at {row['shape_class']} on {row['arch']}"
            groups.setdefault(place, []).append(row)
            limit = SHARED_LIMIT[int(row["arch"].removeprefix("sm_"))]
            if row["shared"] > limit:
                found.append(f"{place}, {row['config']}: {row['shared']} bytes of shared memory")
            if not row["tensor_core"]:
                found.append(f"{place}, {row['config']}: no tensor-core instructions")
            if row["arch"] == "sm_90" and not row["tensor_core"].get("HGMMA"):
                found.append(f"{place}, {row['config']}: no HGMMA")
            if row["default"] and row["spilled"]:
                found.append(f"{place}, {row['config']}: the default spills {row['spilled']} bytes")
    for place, group in groups.items():
        if all(row["spilled"] for row in group):
            found.append(f"{place}: every config spills")
    return found


def write(out: Path, rows: list[Row]) -> None:
    beside = out.with_suffix(".json.part")
    beside.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    beside.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--kernel", nargs="+", default=[])
    parser.add_argument("--shape-class", nargs="+", default=[])
    parser.add_argument("--default", action="store_true", help="only the choices without tuning")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    held: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows: list[Row] = held.get("rows", []) if held.get("triton") == triton.__version__ else []
    known = {tuple(row[k] for k in KEY) for row in rows}
    work = [w for w in todo(options) if tuple(identity(*w).values()) not in known]
    for case, config, arch in tqdm(work, desc="compile", file=sys.stderr):
        rows.append(compiled(case, config, arch))
        write(options.out, rows)
    mark(rows)
    write(options.out, rows)
    print(f"{len(rows)} rows in {options.out}")
    if found := problems(rows):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
