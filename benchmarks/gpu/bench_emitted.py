"""Emitted kernels on a GPU against what torch.compile makes of the same region.

    python benchmarks/gpu/bench_emitted.py [--model NAME ...] [--minutes 8]
    python benchmarks/gpu/bench_emitted.py --device cpu --dry-run

Norm, rotary and layout, and the exits of blocks, of published models at their width and size, each
in every cut.  Rows are kept as they are made, in results/<device>/emitted.json: stopped,
or out of time, it goes on where it was.  Random operands; GB/s counts
every operand and result once, also of rows that are gathered.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from device import Row, Rows, folder, free_memory, milliseconds, said
from emission import MODELS, emitted
from page import table
from torch import Tensor
from tqdm import tqdm

from fisopt.codegen.emit.kernel import Kernel
from fisopt.codegen.emit.region import Region
from fisopt.codegen.emit.trial import candidates, cuts

KEY = ("model", "kernel", "implementation")
TINY = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 16}
TINY_SIZE = {"height": 32, "width": 64, "num_frames": 17}


def rows_of(name: str, kernel: Kernel, region: Region, device: torch.device) -> list[Row]:
    """One row for the compiled region, one for each cut of the kernel."""
    held: Row = {"model": name, "kernel": kernel.name, "summary": kernel.summary}
    try:
        return timed(held, kernel, region, device)
    except Exception as error:
        return [held | {"implementation": i, "failed": said(error)} for i in providers(kernel)]


def providers(kernel: Kernel) -> list[str]:
    """What a kernel's rows are of."""
    return ["reference", *cuts(kernel)]


def timed(held: Row, kernel: Kernel, region: Region, device: torch.device) -> list[Row]:
    """The rows of a kernel, `held` in each of them."""
    runs = candidates(region, kernel, device)
    moved = sum(_bytes(n.meta["val"]) for n in (*region.operands, *region.results))
    expected = [y.float() for y in runs["reference"]()]
    reference = milliseconds(runs["reference"])
    rows = []
    for implementation, run in runs.items():
        row = held | {"implementation": implementation}
        try:
            ms = reference if implementation == "reference" else milliseconds(run)
            row |= {"us": round(1e3 * ms, 1), "gb_s": round(moved / ms / 1e6, 1)}
            row |= {"of_reference": round(reference / ms, 2), "error": _error(run(), expected)}
        except Exception as error:
            row["failed"] = said(error)
        rows.append(row)
    return rows


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, in parts of the largest value."""
    pairs = zip(got, expected, strict=True)
    return round(max(float((x.float() - y).abs().max() / y.abs().max()) for x, y in pairs), 5)


def measured(name: str, rows: Rows, device: torch.device, tiny: bool) -> bool:
    """Add the rows of one model as far as time reaches; return whether they are all there."""
    try:
        found = [*(emitted(name, TINY_SIZE, **TINY) if tiny else emitted(name))]
    except Exception as error:
        print(f"{name}: {said(error)}", file=sys.stderr)
        return False
    for kernel, region in tqdm(found, desc=name):
        held = {"model": name, "kernel": kernel.name}
        if not rows.missing([held | {"implementation": i} for i in providers(kernel)]):
            continue
        if rows.over:
            return False
        torch.compiler.reset()
        for row in rows.missing(rows_of(name, kernel, region, device)):
            rows.add(row)
        free_memory()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", nargs="+", default=[*MODELS])
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model in the interpreter")
    parser.add_argument("--again", action="store_true", help="measure again what has failed")
    parser.add_argument("--out", type=Path, help="default: results/<device>")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu --dry-run shows that everything but it is there")
    if (options.device == "cpu") != options.dry_run:
        sys.exit("--device cpu and --dry-run belong together: a CPU's times say nothing")
    out, device = options.out or folder(), torch.device(options.device)
    rows, complete = Rows(out / "emitted.json", KEY, options.minutes, options.again), True
    for name in ("wan2.1-1.3b",) if options.dry_run else options.model:
        complete = not rows.over and measured(name, rows, device, options.dry_run) and complete
    print(table("emitted", rows.rows))
    print(f"{rows.path}: {'complete' if complete else 'run again to go on'}")


if __name__ == "__main__":
    main()
