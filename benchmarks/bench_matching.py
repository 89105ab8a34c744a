"""What matching costs beside the attention that it shortens: in FLOPs, and timed on this machine.

    python benchmarks/bench_matching.py [--rounds 5] [--tables DIR] [--only costs graphs precision]

FLOPs are counted at the four published shapes: matching of queries and of values against one dense
attention, at every step and once in the published number of steps.  The clock runs at a size that
fits: one head of each grid, shrunk alike in rows and columns.  Memory is that of one head at the
published shape, in a process of its own.

With the folder of the authors' tables (``--tables``, or FISOPT_ASYMRNR_DATA), also what the eight
published schedules leave of a visual attention: from the tables (costs), and counted in the models'
own graphs at the published sizes on the meta device, text included (graphs).  And how many of the
testbed's tokens have the same nearest destination if distances are taken in bfloat16 (precision).
Parts that are not asked for keep what the result file says of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench_quality import fixed_latents
from harness import RESULTS, interleaved, machine, write
from published_costs import VIDEOS, Graphs, from_table, neighbours, schedule_of

import fisopt
from fisopt.models import testbed
from fisopt.passes.reduction.published_reductions import PublishedReduction
from fisopt.rewrite.ops.match_tokens import match_tokens
from fisopt.rewrite.ops.reduce_tokens import reduce_tokens
from fisopt.rewrite.ops.restore_tokens import restore_tokens
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


def precision() -> list[dict[str, Any]]:
    """Per block of the testbed: tokens with the same nearest destination in bfloat16."""
    pipe = testbed.load_testbed()
    real, seen = torch.nn.functional.scaled_dot_product_attention, []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kw: Any) -> Any:
        if query.shape == key.shape:  # to itself, not to the text
            seen.append((query, value))
        return real(query, key, value, **kw)

    call = fixed_latents([str(p) for p in testbed.sample_prompts(2, seed=11)])[1]
    with torch.no_grad(), mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        pipe.transformer(**call)
    chosen = destinations((16, 8, 8), (2, 2, 2), 0)
    return [
        {
            "block": block,
            **{
                feature: round(neighbours(x.flatten(0, 1), chosen), 4)
                for feature, x in zip(("query", "value"), both, strict=True)
            },
        }
        for block, both in enumerate(seen)
    ]


def measured(rounds: int) -> list[dict[str, Any]]:
    """FLOPs, seconds and memory of matching, by published shape."""
    rows = []
    for name, known in fisopt.PUBLISHED_REDUCTIONS.items():
        with torch.no_grad():
            row = {"name": name, "flops": counted(name, known)}
            row["clock"] = timed(name, known, rounds)
        row["memory"] = peak(name)
        rows.append(row)
        print(row, flush=True)
    return rows


def published(tables: Path, known: dict[str, Any], *, graphs: bool) -> Iterator[dict[str, Any]]:
    """What the published schedules leave of a visual attention, by name and speed.

    Yields all that is known after every configuration; one whose graph was counted is not again.
    """
    for name, reduction in fisopt.PUBLISHED_REDUCTIONS.items():
        rows = {speed: known.get(f"{name}, {speed}", {}) for speed in reduction.thresholds}
        held = None
        if graphs and not all("cost_in_graph" in row for row in rows.values()):
            held = Graphs(name)
        for speed, row in rows.items():
            schedule = schedule_of(name, speed, tables)
            row = {**row, **from_table(name, schedule)}
            if held is not None:
                row["cost_in_graph"] = round(held.cost(schedule), 4)
            known = {**known, f"{name}, {speed}": row}
            print(name, speed, row, flush=True)
        yield known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", metavar="NAME", help="only the memory of one, in this process")
    parser.add_argument("--tables", type=Path, default=os.environ.get("FISOPT_ASYMRNR_DATA"))
    parts = ("clock", "costs", "graphs", "precision")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measure_peak(options.peak)))
        return
    path = RESULTS / "matching.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "clock" in options.only:
        result |= {"machine": machine(), "ratio": RATIO, "rows": measured(options.rounds)}
    if options.tables is not None and {"costs", "graphs"} & set(options.only):
        result["published_shapes"] = {n: vars(video) for n, video in VIDEOS.items()}
        known, graphs = result.get("published_cost", {}), "graphs" in options.only
        for costs in published(Path(options.tables), known, graphs=graphs):
            result["published_cost"] = costs
            write("matching", result)
    if "precision" in options.only:
        result["same_neighbours_in_bfloat16"] = precision()
    print(f"wrote {write('matching', result)}")


if __name__ == "__main__":
    main()
