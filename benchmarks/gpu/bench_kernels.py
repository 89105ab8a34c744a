"""Kernels on a GPU: ours, their references and what PyTorch has, at published shapes.

    python benchmarks/gpu/bench_kernels.py [--part tile_attention ...] [--configs] [--minutes 8]
    python benchmarks/gpu/bench_kernels.py --device cpu --dry-run

Each part is a JSON file under benchmarks/results/<device>/, written row by row: stopped, or out of
time, it goes on where it was at the next start.  Rates count the work that is kept.  What fails or
does not fit is a row that says so, made again with --again.  Random operands, no weights: nothing
here speaks of quality.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from device import Row, Rows, folder, free_memory, milliseconds, said
from page import table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from fisopt import SlidingWindow, TileMask
from fisopt.codegen.kernels import (
    match_tokens,
    reduce_attend_restore,
    reduce_dense,
    tile_attention,
    tile_merge,
)
from fisopt.passes.tiling.masks import FrameMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.match_nearby import match_nearby
from fisopt.rewrite.ops.match_tokens import match_tokens as match_contract
from fisopt.rewrite.ops.reduce_attend_restore import reduce_attend_restore as reduced_contract
from fisopt.rewrite.ops.tile_attention import tile_attention as tile_contract
from fisopt.rewrite.partition import destinations_in_cells, sources_to_keep
from fisopt.rewrite.tile_plan import TilePlan, bounds, tile_plan, with_text

MASKS: dict[str, FrameMask] = {
    **{f"k={k}": TileMask(k) for k in (2, 1, 4, 8)},
    "window 2": SlidingWindow(2),
}
RATIOS = (0.5, 0.7, 0.3)
"""Kept shares of queries and of keys and values."""
KEY = ("shape", "kept", "implementation")


@dataclass(frozen=True)
class Shape:
    """A published attention: its token grid, text, heads and width."""

    name: str
    grid: tuple[int, int, int]
    text: int
    heads: int
    width: int
    stride: tuple[int, int, int] = (2, 2, 2)

    @property
    def axis(self) -> FrameAxis:
        """Where the frames are in the sequence; text is behind them."""
        frames, rows, columns = self.grid
        return FrameAxis(frames, inner=rows * columns, after=self.text)


SHAPES = (
    Shape("Wan2.2-A14B 720p81", (21, 45, 80), 0, 40, 128),
    Shape("Wan2.2-TI2V-5B 704p121", (31, 22, 40), 0, 24, 128),
    Shape("HunyuanVideo 1.5 720p121", (31, 45, 80), 256, 16, 128),
    Shape("CogVideoX-5B 480p49", (13, 30, 45), 226, 48, 64),
)
TINY = (Shape("tiny", (9, 2, 3), 7, 2, 16),)
Provider = Callable[[], Any]


def operands(shape: Shape, device: str) -> tuple[Tensor, ...]:
    """Query, key and value as models lay them out in memory."""
    size = (3, 1, shape.axis.size, shape.heads, shape.width)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator)
    return tuple(x.transpose(2, 3))


def flex_mask(kept: Tensor, axis: FrameAxis) -> BlockMask:
    """The same kept pairs as FlexAttention takes them, text among the groups."""
    groups = with_text(kept, axis, axis)
    edges = bounds(axis, kept.device)
    token = torch.arange(axis.size, device=kept.device)
    group = torch.searchsorted(edges[1:], token, right=True)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return groups[group[q], group[k]]

    device = kept.device.type
    with torch.device(device):
        return create_block_mask(
            seen, None, None, axis.size, axis.size, device=device, _compile=device == "cuda"
        )


def dense(kinds: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(kinds):
        return scaled_dot_product_attention(q, k, v)


def compiled(call: Callable[..., Any], device: str) -> Callable[..., Any]:
    """A call as torch.compile has it; as it is in a dry run.

    Not for what loops over chunks or groups: it would be unrolled, thousands of chunks long.
    """
    return torch.compile(call, dynamic=False) if device == "cuda" else call


def label(config: Any) -> str:
    sizes = "x".join(str(v) for v in config.kwargs.values() if not isinstance(v, bool))
    descriptors = ", descriptors" if config.kwargs.get("DESCRIPTORS") else ""
    return f"fisopt {sizes}, {config.num_warps} warps, {config.num_stages} stages{descriptors}"


def chosen(kernel: Any, configs: bool) -> dict[str, Any]:
    """The tile choices to time: the default, or all of them beside it."""
    return {"fisopt": None} | ({label(c): c for c in kernel.CONFIGS} if configs else {})


def attention_flops(pairs: float, shape: Shape) -> float:
    return 4.0 * pairs * shape.heads * shape.width


def tile_rows(shapes: tuple[Shape, ...], configs: bool) -> Iterator[Row]:
    for shape in shapes:
        for name in ("sdpa cudnn", "sdpa flash"):
            yield {"shape": shape.name, "kept": "all", "implementation": name}
        for kept in MASKS:
            others = ("fisopt merge", "reference", "flex attention")
            for name in (*chosen(tile_attention, configs), *others):
                yield {"shape": shape.name, "kept": kept, "implementation": name}


def tile_row(row: Row, shape: Shape, device: str, rows: list[Row]) -> Row:
    """Time tile attention, or dense attention, at one shape and mask."""
    q, k, v = operands(shape, device)
    axis, name = shape.axis, row["implementation"]
    dense_one = is_dense(row)
    table = torch.ones(axis.frames, axis.frames, dtype=torch.bool)
    kept = (table if dense_one else MASKS[row["kept"]].table(axis.frames)).to(device)
    plan: TilePlan = tile_plan(kept, axis, axis)
    args = (q, k, v, None, plan.rows, plan.keys, plan.pairs, None)
    on_cpu = [SDPBackend.MATH] if device == "cpu" else None
    if name.startswith("sdpa"):
        kind = SDPBackend.CUDNN_ATTENTION if "cudnn" in name else SDPBackend.FLASH_ATTENTION
        call: Provider = partial(dense, on_cpu or [kind], q, k, v)
    elif name == "reference":
        call = partial(tile_contract.implementation, *args)
    elif name == "fisopt merge":
        call = partial(tile_merge.launch, *args)
    elif name == "flex attention":
        mask = flex_mask(kept, axis)
        call = partial(compiled(flex_attention, device), q, k, v, block_mask=mask)
    else:
        config = chosen(tile_attention, configs=True)[name]
        call = partial(tile_attention.launch, *args, config=config)
    error = 0.0 if dense_one else deviation(call(), tile_contract.implementation(*args))
    ms = milliseconds(call)
    flops = attention_flops(plan.pairs, shape)
    result = {
        "density": round(plan.density, 4),
        "ms": round(ms, 4),
        "tflops": float(f"{flops / ms / 1e9:.4g}"),
        "gb_s": round(4 * q.numel() * q.element_size() / ms / 1e6, 1),
        "error": error,
    }
    alike = [r for r in rows if r["shape"] == shape.name and is_dense(r)]
    best = [r["tflops"] for r in alike if "tflops" in r]
    if best and not is_dense(row):
        result["of_dense_rate"] = round(result["tflops"] / max(best), 3)
    return result


def is_dense(row: Row) -> bool:
    return bool(row["implementation"].startswith("sdpa"))


def deviation(got: Tensor, want: Tensor) -> float:
    """Relative L2 difference, a head at a time so that it fits."""
    pairs = list(zip(got.flatten(0, 1), want.flatten(0, 1), strict=True))
    lost = sum(float((a.float() - b.float()).square().sum()) for a, b in pairs)
    return round(math.sqrt(lost / sum(float(b.float().square().sum()) for _, b in pairs)), 5)


def match_rows(shapes: tuple[Shape, ...], configs: bool) -> Iterator[Row]:
    for shape in shapes:
        for name in (*chosen(match_tokens, configs), "reference", "fisopt near"):
            yield {"shape": shape.name, "kept": "0.5", "implementation": name}


def match_row(row: Row, shape: Shape, device: str, rows: list[Row]) -> Row:
    """Time the search of nearest destinations with the ranking that follows it.

    That nearby is compared with itself in single precision.
    """
    del rows
    x, name = operands(shape, device)[0], row["implementation"]
    places, corner = (p.to(device) for p in destinations_in_cells(shape.grid, shape.stride, 0))
    tokens = math.prod(shape.grid)
    keep = sources_to_keep(tokens, len(places), 1 - float(row["kept"]))
    args = (x, places, keep, 0, shape.text)
    contract = match_contract
    want = partial(contract.reference, *args)
    if name == "fisopt near":
        contract, args = match_nearby, (x, places, corner, shape.grid, shape.stride, *args[2:])
        want = partial(contract.reference, x.float(), *args[1:])
        call: Provider = partial(contract.reference, *args)
    elif name == "reference":
        call = partial(match_contract.reference, *args)
    else:
        config = chosen(match_tokens, configs=True)[name]
        call = partial(match_tokens.launch, *args, config=config)
    share = float((call()[1] != want()[1]).float().mean())
    ms = milliseconds(call)
    return {
        "density": float(row["kept"]),
        "ms": round(ms, 4),
        "tflops": round(contract.flops(*args) / ms / 1e9, 3),
        "gb_s": round(x.numel() * x.element_size() / ms / 1e6, 1),
        "error": round(share, 5),
    }


def reduced_rows(shapes: tuple[Shape, ...], configs: bool) -> Iterator[Row]:
    for shape in shapes:
        for kept in RATIOS:
            others = ("fisopt dense", "compiled reference")
            for name in (*chosen(reduce_attend_restore, configs), *others):
                yield {"shape": shape.name, "kept": str(kept), "implementation": name}


def reduced_row(row: Row, shape: Shape, device: str, rows: list[Row]) -> Row:
    """Time attention on what token reduction keeps of queries and of keys and values."""
    del rows
    (q, k, v), name = operands(shape, device), row["implementation"]
    places = destinations_in_cells(shape.grid, shape.stride, 0)[0].to(device)
    keep = sources_to_keep(math.prod(shape.grid), len(places), 1 - float(row["kept"]))
    queries, origin, _ = match_contract.reference(q, places, keep, 0, shape.text)
    keys = match_contract.reference(v, places, keep, 0, shape.text)[0]
    args = (q, k, v, None, queries, keys, origin, None, shape.grid[0], 0, shape.text)
    if name == "compiled reference":
        call: Provider = partial(compiled(reduced_contract.implementation, device), *args)
    elif name == "fisopt dense":
        call = partial(reduce_dense.launch, *args)
    else:
        config = chosen(reduce_attend_restore, configs=True)[name]
        call = partial(reduce_attend_restore.launch, *args, config=config)
    error = deviation(call(), reduced_contract.reference(*args))
    ms = milliseconds(call)
    pairs = queries.shape[-1] * keys.shape[-1]
    return {
        "density": round(pairs / shape.axis.size**2, 4),
        "ms": round(ms, 4),
        "tflops": round(attention_flops(pairs, shape) / ms / 1e9, 3),
        "gb_s": round(4 * q.numel() * q.element_size() / ms / 1e6, 1),
        "error": error,
    }


PARTS = {
    "tile_attention": (tile_rows, tile_row),
    "match_tokens": (match_rows, match_row),
    "reduce_attend_restore": (reduced_rows, reduced_row),
}


def wanted(row: Row, options: argparse.Namespace) -> bool:
    """Whether a row is among those that were asked for."""
    chosen = ((options.implementation, row["implementation"]), (options.kept, row["kept"]))
    return all(names is None or name in names for names, name in chosen)


def run(name: str, shapes: tuple[Shape, ...], options: argparse.Namespace) -> bool:
    """Run one part as far as its time reaches; return whether all its rows are there."""
    todo, measure = PARTS[name]
    by_name = {shape.name: shape for shape in shapes}
    held = Rows(options.out / f"{name}.json", KEY, options.minutes, options.again)
    rows = (row for row in todo(shapes, options.configs) if wanted(row, options))
    missing = held.missing(rows)
    for row in tqdm(missing, desc=name):
        if held.over:
            break
        torch.compiler.reset()  # so many shapes would pass the limit of recompilations
        try:
            row |= measure(row, by_name[row["shape"]], options.device, held.rows)
        except Exception as error:
            row["failed"] = said(error)
        held.add(row)
        free_memory()
    print(table(name, held.rows))
    return not held.missing(todo(shapes, options.configs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shape", nargs="+", choices=[s.name for s in SHAPES])
    parser.add_argument("--implementation", nargs="+", help="only these")
    parser.add_argument("--kept", nargs="+", help="only these masks or shares")
    parser.add_argument("--configs", action="store_true", help="every tile choice, not the default")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of a part")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in the interpreter")
    parser.add_argument("--again", action="store_true", help="measure again what has failed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu --dry-run shows that everything but it is there")
    if (options.device == "cpu") != options.dry_run:
        sys.exit("--device cpu and --dry-run belong together: a CPU's times say nothing")
    options.out = options.out or folder()
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = TINY if options.dry_run else SHAPES
    if options.shape:
        shapes = tuple(s for s in SHAPES if s.name in options.shape)
    with torch.no_grad():
        done = {name: run(name, shapes, options) for name in options.part}
    for name, complete in done.items():
        print(f"{options.out / name}.json: {'complete' if complete else 'run again to go on'}")


if __name__ == "__main__":
    main()
