"""Tile-sparse attention on a CPU: against compiled dense attention, and its growth with frames.

    python benchmarks/bench_tile_attention.py [--rounds 5] [--threads 1]

Everything is timed in turns in one run: compiled dense attention, the contract's operator, and the
two other ways to compute the same, FlexAttention's kernel and one attention a key range with the
partial results merged by their log-sum-exp.  Compilation is excluded; planning is not needed again
and is reported by itself.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import interleaved, machine, paired_ratio, write
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from fisopt.passes.tiling.masks import TileMask
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops import tile_attention as contract
from fisopt.rewrite.tile_plan import TilePlan, tile_plan

TOKENS = 16384
SHAPES = ((16, 4), (8, 1), (32, 4))  # frames, k: sparsity 52, 66 and 74 %
WIDTHS = (64, 128)
GROWTH_FRAMES = (8, 16, 32, 64)
GROWTH_TOKENS = 256
GROWTH_K = 2
FLEX_BLOCKS = (128, 512)

attend = torch.compile(scaled_dot_product_attention, fullgraph=True, dynamic=False)
flex = torch.compile(flex_attention, fullgraph=True, dynamic=False)
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@torch.compile(fullgraph=True, dynamic=False)
def tiles(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, pairs: int) -> Tensor:
    result: Tensor = contract.tile_attention(q, k, v, None, rows, keys, pairs, None)
    return result


def merged(q: Tensor, k: Tensor, v: Tensor, plan: TilePlan) -> Tensor:
    """One attention a key range; partial results are merged by their log-sum-exp."""
    out = torch.empty_like(q)
    starts = plan.rows.tolist()
    for start, end, ranges in contract._merged(starts, plan.keys[0].tolist()):
        query = q[:, :, start:end]
        total, weight = flash(query, *(x[:, :, slice(*ranges[0])] for x in (k, v)))
        for one in ranges[1:]:
            part, other = flash(query, *(x[:, :, slice(*one)] for x in (k, v)))
            both = torch.logaddexp(weight, other)
            total = total * (weight - both).exp()[..., None]
            total += part * (other - both).exp()[..., None]
            weight = both
        out[:, :, start:end] = total
    return out


def flexible(frames: int, inner: int, k: int, block: int) -> Any:
    """The same mask for FlexAttention, whose blocks take no notice of frames."""
    stride = -(-frames // k)

    def kept(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        i, j = query // inner, key // inner
        return (i == j) | (i % stride == 0) | (j % stride == 0)

    size = frames * inner
    return create_block_mask(kept, None, None, size, size, device="cpu", BLOCK_SIZE=block)


def compare(frames: int, k: int, width: int, rounds: int) -> dict[str, Any]:
    """Every way to compute one tile-sparse attention of 16k tokens, one head."""
    torch.compiler.reset()
    axis = FrameAxis(frames, inner=TOKENS // frames)
    start = time.perf_counter()
    plan = tile_plan(TileMask(k).table(frames), axis, axis)
    planning = time.perf_counter() - start
    q, key, v = (torch.randn(1, 1, axis.size, width) for _ in range(3))
    calls: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: attend(q, key, v),
        "tile_attention": lambda: tiles(q, key, v, plan.rows, plan.keys, plan.pairs),
        "merged by log-sum-exp": lambda: merged(q, key, v, plan),
    }
    for block in FLEX_BLOCKS:
        mask = flexible(frames, axis.inner, k, block)
        calls[f"flex attention, blocks of {block}"] = lambda mask=mask: flex(
            q, key, v, block_mask=mask
        )
    want = calls["tile_attention"]()
    errors = {name: float((call() - want).abs().max()) for name, call in calls.items()}
    seconds = interleaved(calls, rounds)
    row: dict[str, Any] = {
        "frames": frames,
        "k": k,
        "tokens_per_frame": axis.inner,
        "width": width,
        "density": round(plan.density, 4),
        "sparsity": round(1 - plan.density, 4),
        "plan_ms": round(1e3 * planning, 2),
    }
    for name, times in seconds.items():
        ratio = paired_ratio(seconds["dense"], times)
        row[name] = {
            "median_s": round(statistics.median(times), 4),
            "ratio": round(ratio, 3),
            "of_ideal": round(ratio * (1.0 if name == "dense" else plan.density), 3),
            "difference": None if name == "dense" else errors[name],
        }
    print(row, flush=True)
    return row


def growth(rounds: int) -> dict[str, Any]:
    """Seconds at growing frame counts for one k, and the slopes of their logarithms."""
    names = ("dense", "tile_attention")
    calls: dict[str, Callable[[], Tensor]] = {}
    for frames in GROWTH_FRAMES:
        axis = FrameAxis(frames, inner=GROWTH_TOKENS)
        plan = tile_plan(TileMask(GROWTH_K).table(frames), axis, axis)
        q, k, v = (torch.randn(1, 2, axis.size, 64) for _ in range(3))
        calls[f"dense {frames}"] = lambda q=q, k=k, v=v: attend(q, k, v)
        calls[f"tile_attention {frames}"] = lambda q=q, k=k, v=v, plan=plan: tiles(
            q, k, v, plan.rows, plan.keys, plan.pairs
        )
    for call in calls.values():
        call()
    seconds = interleaved(calls, rounds)
    medians = {
        name: [min(seconds[f"{name} {frames}"]) for frames in GROWTH_FRAMES] for name in names
    }
    result = {
        "k": GROWTH_K,
        "tokens_per_frame": GROWTH_TOKENS,
        "frames": GROWTH_FRAMES,
        **{
            name: {"best_s": [round(s, 5) for s in times], "slope": round(slope(times), 3)}
            for name, times in medians.items()
        },
    }
    print(result, flush=True)
    return result


def slope(times: list[float]) -> float:
    """Least-squares slope of log seconds over log frames."""
    x, y = [math.log(f) for f in GROWTH_FRAMES], [math.log(s) for s in times]
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        grown = growth(2 * arguments.rounds)
        rows = [
            compare(frames, k, width, arguments.rounds) for width in WIDTHS for frames, k in SHAPES
        ]
    what = f"attention of {TOKENS} tokens, one head, float32, batch 1; compilation excluded"
    result = {
        "machine": machine(),
        "what": what,
        "rounds": arguments.rounds,
        "growth": grown,
        "rows": rows,
    }
    write("tile_attention", result)


if __name__ == "__main__":
    main()
