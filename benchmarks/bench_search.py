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


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What looking nearby loses at each setting that both searches have, clip by clip."""
    known = {(r["steps"], r["share"], r["search"]): r for r in rows}
    found = []
    for steps, share, search in known:
        if search != "all" or (steps, share, "near") not in known:
            continue
        everywhere, near = (known[steps, share, s]["psnr_by_clip"] for s in SEARCHES)
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
    known = json.loads(PATH.read_text()) if PATH.exists() else {"clips": options.clips, "rows": []}
    rows = known["rows"] if known["clips"] == options.clips else []
    bench = Bench(options.clips)
    done = {(r["steps"], r["share"], r["search"]) for r in rows}
    todo = [(n, share, s) for n in options.steps for share in options.shares for s in SEARCHES]
    for each in tqdm([setting for setting in todo if setting not in done], desc="search"):
        rows.append(row(bench, *each))
        print({k: v for k, v in rows[-1].items() if k != "psnr_by_clip"}, flush=True)
        result = {
            "machine": machine(),
            "what": "bundled testbed, guidance 2.0, Euler steps, float32, cells of 2x2x2",
            "clips": options.clips,
            "compared": compared(rows),
            "rows": rows,
        }
        write(PATH.stem, result)


if __name__ == "__main__":
    main()
