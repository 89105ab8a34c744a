"""What the emitted kernels of published models become on sm_80, sm_90 and sm_100, without a GPU.

    python benchmarks/bench_aot_emitted.py [--model NAME ...] [--arch 90 ...]

Two blocks of each model are captured at its published width and size from shapes alone, in
bfloat16, with FrameInterleave in every block; every kernel that is emitted for them is compiled in
each of its cuts.  Rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from itertools import product
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from emission import MODELS, OTHERS, emitted
from harness import RESULTS, write
from tqdm import tqdm

from fisopt.codegen.aot import ARCHITECTURES, compile_source
from fisopt.codegen.aot_emitted import source_of
from fisopt.codegen.emit.kernel import Config, Kernel
from fisopt.codegen.emit.region import Region
from fisopt.errors import LoweringError

PATH = RESULTS / "aot_emitted.json"
WIDE = 1 << 31
"""Elements from which on offsets take 64 bits."""


def row_of(name: str, kernel: Kernel, config: Config, region: Region, arch: int) -> dict[str, Any]:
    """Compile once, and say what came out."""
    types = [node.meta["val"].dtype for node in region.operands]
    tensors = [n.meta["val"].numel() for n in (*region.operands, *region.results)]
    row: dict[str, Any] = {
        "kernel": kernel.name,
        "shape_class": f"{name}, rows of {kernel.columns}",
        "arch": f"sm_{arch}",
        "config": str(config),
        "default": config == kernel.configs()[0],
        "summary": kernel.summary,
    }
    source, options = source_of(kernel, config, types, wide=max(tensors) >= WIDE)
    try:
        made = compile_source(source, options, arch, kernel.name)
    except LoweringError as error:
        return {**row, "refused": str(error)}
    return {**row, **dataclasses.asdict(made)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", nargs="+", default=[*MODELS, *OTHERS])
    parser.add_argument("--arch", nargs="+", type=int, default=[*ARCHITECTURES])
    options = parser.parse_args()
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    for name in options.model:
        known = {(r["kernel"], r["config"], r["arch"]) for r in rows}
        for kernel, region in tqdm([*emitted(name)], desc=name):
            for config, arch in product(kernel.configs(), options.arch):
                if (kernel.name, str(config), f"sm_{arch}") not in known:
                    rows.append(row_of(name, kernel, config, region, arch))
            write(PATH.stem, {"triton": triton.__version__, "rows": rows})
    spilled = {(r["kernel"], r["config"], r["default"]) for r in rows if r.get("spilled")}
    print(f"{len(rows)} rows; with spills: {sorted(spilled)}")


if __name__ == "__main__":
    main()
