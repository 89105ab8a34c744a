"""Tokens that look for what stands for them near them, against those that look everywhere.

    python benchmarks/bench_search.py [--clips 6] [--steps 4 25] [--shares 0.3 0.5 0.7]

Each clip of the testbed is generated dense and with both searches from the same noise and the same
destinations, the same share of queries and of keys and values dropped in every block.  For each:
PSNR and SSIM against the dense clip and the checker's score; for each pair: the difference in PSNR
clip by clip, with its standard error.  Rows are kept as they are made; a second call adds those
that are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

from bench_quality import scores
from bench_redraw import Bench
from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt
from fisopt.tuning.quality import compare

PATH = RESULTS / "token_search.json"
SEARCHES = ("all", "near")


def row(bench: Bench, steps: int, share: float, search: Any) -> dict[str, Any]:
    """Measure one form."""
    if steps not in bench.dense:
        bench.dense[steps] = bench.generate(bench.model, steps)
    reduction = fisopt.TokenReduction(share, share, search=search)
    clips = bench.generate(fisopt.optimize(bench.eager, [reduction], backend="eager"), steps)
    dense = bench.dense[steps]
    pairs = [compare(clip, reference) for clip, reference in zip(clips, dense, strict=True)]
    return {
        "steps": steps,
        "share": share,
        "search": search,
        **scores(clips, dense, bench.prompts),
        "psnr_by_clip": [round(pair.psnr, 3) for pair in pairs],
    }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row measures."""
    return row["steps"], row["share"], row["search"]


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What looking nearby loses at each setting that both searches have, clip by clip."""
    known = {key(r): r for r in rows}
    found = []
    for steps, share, search in known:
        if search != "all" or (steps, share, "near") not in known:
            continue
        everywhere, near = (known[steps, share, s]["psnr_by_clip"] for s in SEARCHES)
        if len(everywhere) != len(near):
            continue  # one of them is being measured anew
        gains = [b - a for a, b in zip(everywhere, near, strict=True)]
        found.append(
            {
                "steps": steps,
                "share": share,
                "gain_db": round(statistics.mean(gains), 3),
                "standard_error_db": round(statistics.stdev(gains) / math.sqrt(len(gains)), 3),
                "better_clips": sum(gain > 0 for gain in gains),
                "clips": len(gains),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    options = parser.parse_args()
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    bench = Bench(options.clips)
    done = {key(r) for r in rows if len(r["psnr_by_clip"]) == options.clips}
    todo = [(n, share, s) for n in options.steps for share in options.shares for s in SEARCHES]
    for each in tqdm([setting for setting in todo if setting not in done], desc="search"):
        rows = [*(r for r in rows if key(r) != each), row(bench, *each)]
        print({k: v for k, v in rows[-1].items() if k != "psnr_by_clip"}, flush=True)
        result = {
            "machine": machine(),
            "what": "bundled testbed, guidance 2.0, Euler steps, float32, cells of 2x2x2",
            "compared": compared(rows),
            "rows": rows,
        }
        write(PATH.stem, result)


if __name__ == "__main__":
    main()
