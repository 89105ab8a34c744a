"""What the emitted kernels of published models become on sm_80, sm_90 and sm_100, without a GPU.

    python benchmarks/bench_aot_emitted.py [--model NAME ...] [--arch 90 ...]

Two blocks of each model are captured at its published width and size from shapes alone, in
bfloat16, with FrameInterleave in every block; every kernel that is emitted for them is compiled.
Rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from harness import RESULTS, write
from torch import fx
from tqdm import tqdm

import fisopt
from fisopt import FrameInterleave, models
from fisopt.codegen.aot import ARCHITECTURES, compile_source
from fisopt.codegen.aot_emitted import source_of
from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Kernel, emit
from fisopt.codegen.emit.region import Region, find_regions
from fisopt.codegen.lower import lower
from fisopt.errors import LoweringError

PATH = RESULTS / "aot_emitted.json"
MODELS = ("wan2.2-ti2v-5b", "hunyuanvideo-1.5", "cogvideox-5b", "ltx-video", "mochi-1")
WIDE = 1 << 31
"""Elements from which on offsets take 64 bits."""


def emitted(name: str) -> Iterator[tuple[Kernel, Region]]:
    """Every distinct kernel of a model's blocks, with a region that it serves."""
    model = models.build(name, dtype=torch.bfloat16, num_layers=2)
    inputs = models.example_inputs(model)
    program = FrameInterleave(stride=2, first_block=0)(fisopt.capture(model, inputs)).program
    seen = set()
    for _, stage in lower(program).named_children():
        for region in find_regions(stage) if isinstance(stage, fx.GraphModule) else ():
            try:
                kernel = emit(region)
            except RefusalError:
                continue
            if kernel.name not in seen:
                seen.add(kernel.name)
                yield kernel, region


def row_of(name: str, kernel: Kernel, region: Region, arch: int) -> dict[str, Any]:
    """Compile once, and say what came out."""
    config = kernel.config()
    types = [node.meta["val"].dtype for node in region.operands]
    tensors = [n.meta["val"].numel() for n in (*region.operands, *region.results)]
    row: dict[str, Any] = {
        "kernel": kernel.name,
        "shape_class": f"{name}, rows of {kernel.columns}",
        "arch": f"sm_{arch}",
        "config": f"{config.block_rows}x{config.block_columns}, {config.num_warps} warps",
        "default": True,
        "summary": kernel.summary,
    }
    source, options = source_of(kernel, types, wide=max(tensors) >= WIDE)
    try:
        made = compile_source(source, options, arch, kernel.name)
    except LoweringError as error:
        return {**row, "refused": str(error)}
    return {**row, **dataclasses.asdict(made)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", nargs="+", default=[*MODELS])
    parser.add_argument("--arch", nargs="+", type=int, default=[*ARCHITECTURES])
    options = parser.parse_args()
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    for name in options.model:
        known = {(r["kernel"], r["arch"]) for r in rows}
        for kernel, region in tqdm([*emitted(name)], desc=name):
            for arch in options.arch:
                if (kernel.name, f"sm_{arch}") not in known:
                    rows.append(row_of(name, kernel, region, arch))
            write(PATH.stem, {"triton": triton.__version__, "rows": rows})
    spilled = [r["kernel"] for r in rows if r.get("spilled")]
    print(f"{len(rows)} rows, {len(spilled)} with spills: {sorted(set(spilled))}")


if __name__ == "__main__":
    main()
