"""What matching costs beside the attention that it shortens: in FLOPs, and timed on this machine.

    python benchmarks/bench_matching.py [--rounds 5] [--table NAME=FILE ...]

FLOPs are counted at the four published shapes: matching of queries and of values against one dense
attention, at every step and once in the published number of steps.  The clock runs at a size that
fits: one head of each grid, shrunk alike in rows and columns.  Memory is that of one head at the
published shape, in a process of its own.  With ``--table``, the tiers that the
authors give, also the mean cost of a visual attention under the published thresholds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from harness import interleaved, machine, write

import fisopt
from fisopt.passes.published_reductions import PublishedReduction
from fisopt.passes.schedule import Schedule
from fisopt.rewrite.ops import match_tokens, reduce_tokens, restore_tokens
from fisopt.rewrite.partition import destinations, sources_to_keep

WIDTH = {"cogvideox-2b": 64, "hunyuanvideo": 128, "fasthunyuan": 128, "mochi-1": 128}
"""Features of a head."""
ROWS, COLUMNS = 15, 24
"""Most rows and columns of the grids that are timed."""
RATIO = 0.5
"""Share that is dropped, of queries and of values, in the attention that is timed."""


def counted(name: str, known: PublishedReduction) -> dict[str, Any]:
    """FLOPs of matching as a share of one dense attention."""
    tokens, width = math.prod(known.grid), WIDTH[name]
    x = torch.empty(1, 1, tokens, width, device="meta")
    chosen = torch.empty(len(destinations(known.grid, known.destination_stride)), device="meta")
    share = 2 * match_tokens.flops(x, chosen, 0, 0, 0) / (4 * tokens**2 * width)
    return {
        "grid": "x".join(map(str, known.grid)),
        "tokens": tokens,
        "destinations": len(chosen),
        "distances_mib": round(2 * (tokens - len(chosen)) * len(chosen) / 2**20, 1),
        "matching_share": round(share, 5),
        "cache_steps": known.cache_steps,
        "matching_share_cached": round(share / known.cache_steps, 5),
    }


def timed(name: str, known: PublishedReduction, rounds: int) -> dict[str, Any]:
    """Seconds of dense attention, of matching, and of attention on what matching leaves."""
    frames, rows, columns = known.grid
    grid = (frames, min(rows, ROWS), min(columns, COLUMNS))
    tokens = math.prod(grid)
    chosen = destinations(grid, known.destination_stride, 0)
    query, key, value = torch.randn(3, 1, 1, tokens, WIDTH[name])
    keep = sources_to_keep(tokens, len(chosen), RATIO)

    def match() -> tuple[torch.Tensor, ...]:
        return match_tokens.reference(query, chosen, keep, 0, 0)

    kept, origin, _ = match()
    attend = torch.nn.functional.scaled_dot_product_attention

    def short() -> torch.Tensor:
        few = [reduce_tokens.reference(x, kept, None, 2) for x in (query, key, value)]
        return restore_tokens.reference(attend(*few), origin, 2, frames, 0, 0)

    calls = {"dense": lambda: attend(query, key, value), "match": match, "short": short}
    for call in calls.values():
        call()
    seconds = {n: statistics.median(s) for n, s in interleaved(calls, rounds).items()}
    pairs = kept.shape[-1] ** 2
    matched = 2 * seconds["match"]
    return {
        "grid": "x".join(map(str, grid)),
        "tokens": tokens,
        "destinations": len(chosen),
        "seconds_dense": round(seconds["dense"], 5),
        "seconds_match": round(seconds["match"], 5),
        "seconds_short": round(seconds["short"], 5),
        "matching_share": round(matched / seconds["dense"], 4),
        "matching_share_cached": round(matched / known.cache_steps / seconds["dense"], 4),
        "ratio_predicted": round(pairs / tokens**2, 4),
        "ratio_measured": round(seconds["short"] / seconds["dense"], 4),
    }


def peak(name: str) -> dict[str, Any]:
    """MiB that matching one head at the published shape adds to a process, in bfloat16."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def most_resident() -> int:
    """The most memory that this process has held so far, in KiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure_peak(name: str) -> dict[str, Any]:
    """Match once, and read how far the process's resident memory has grown at most."""
    known = fisopt.PUBLISHED_REDUCTIONS[name]
    tokens = math.prod(known.grid)
    chosen = destinations(known.grid, known.destination_stride, 0)
    keep = sources_to_keep(tokens, len(chosen), RATIO)
    small = torch.randn(1, 1, 64, WIDTH[name], dtype=torch.bfloat16)
    match_tokens.reference(small, torch.arange(0, 64, 8), 16, 0, 0)  # what torch sets up once
    x = torch.randn(1, 1, tokens, WIDTH[name], dtype=torch.bfloat16)
    before = most_resident()
    kept, origin, *rest = match_tokens.reference(x, chosen, keep, 0, 0)
    grown = most_resident() - before
    results = sum(t.numel() * t.element_size() for t in (kept, origin, *rest))
    return {"peak_mib": round(grown / 1024, 1), "of_which_results_mib": round(results / 2**20, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", metavar="NAME", help="only the memory of one, in this process")
    parser.add_argument("--table", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measure_peak(options.peak)))
        return
    result: dict[str, Any] = {"machine": machine(), "ratio": RATIO, "rows": []}
    for name, known in fisopt.PUBLISHED_REDUCTIONS.items():
        with torch.no_grad():
            row = {"name": name, "flops": counted(name, known)}
            row["clock"] = timed(name, known, options.rounds)
        row["memory"] = peak(name)
        result["rows"].append(row)
        print(row, flush=True)
    result["published_cost"] = {}
    for name, _, path in (text.partition("=") for text in options.table):
        known = fisopt.PUBLISHED_REDUCTIONS[name]
        for speed in known.thresholds:
            schedule = fisopt.published_reduction(name, path, speed).schedule
            assert isinstance(schedule, Schedule)
            cost = schedule.attention_cost(
                known.grid, known.destination_stride, cache_steps=known.cache_steps
            )
            result["published_cost"][f"{name}, {speed}"] = round(cost, 4)
    print(f"wrote {write('matching', result)}")


if __name__ == "__main__":
    main()
