"""Random video transformers under random passes, each compared with a plain oracle.

    python benchmarks/fuzz.py [--programs N] [--seed S] [--workers W]
    python benchmarks/fuzz.py --show SEED [--shrink]

A seed is a random model, called with one or two random shapes under five random lists of
passes; a model under one list is a program.  Every call equals the oracle or is refused by name.
What is done is kept beside the results as long as the package and the generator are the same, so
that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import machine, write, write_part
from kept import Kept, Row
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.fuzz.program import LISTS, Case, Outcome, case, check
from tests.fuzz.shrink import smallest

FAULTS = ("wrong", "raw error", "touched")
COUNTED = (
    *("machine", "what", "code", "programs", "calls"),
    *("equal", "refused", "wrong", "raw_error", "touched"),
)
"""What stands beside the counts of kills, hostile files and soaks."""


def quiet() -> None:
    """No warnings and logs of torch: what is refused is counted here."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def checked(random: Case) -> list[Outcome]:
    """What becomes of a case; torch prints what it cannot trace, which nobody wants to read."""
    with contextlib.redirect_stderr(io.StringIO()):
        return check(random)


def run(seed: int) -> Row:
    """All programs of one seed."""
    try:
        outcomes = checked(case(seed))
    except Exception as error:
        outcomes = [Outcome("raw error", f"in the generator: {error!r}"[:300], 0, 0)]
    return {"seed": seed, "outcomes": [[o.kind, o.what, o.passes, o.shape] for o in outcomes]}


def fresh(seeds: list[int], workers: int) -> Iterator[Row]:
    """Rows as they are done."""
    if workers == 1:
        yield from map(run, seeds)
        return
    spawned = multiprocessing.get_context("spawn")
    with spawned.Pool(workers, initializer=quiet, maxtasksperchild=40) as pool:
        yield from pool.imap_unordered(run, seeds)


def summary(rows: list[Row], version: str) -> dict[str, Any]:
    """The figures of some rows."""
    calls = Counter(kind for row in rows for kind, *_ in row["outcomes"])
    refusals = Counter(
        what for row in rows for kind, what, *_ in row["outcomes"] if kind == "refused"
    )
    faults = [
        {
            "seed": row["seed"],
            "kind": kind,
            "what": what,
            "again": f"python benchmarks/fuzz.py --show {row['seed']}",
        }
        for row in sorted(rows, key=lambda row: row["seed"])
        for kind, what, *_ in row["outcomes"]
        if kind in FAULTS
    ]
    ran = {
        (row["seed"], passes)
        for row in rows
        for kind, _, passes, _ in row["outcomes"]
        if kind in ("equal", "wrong")
    }
    return {
        "machine": machine(),
        "what": "calls of random models under random passes, each compared with a plain oracle",
        "code": version,
        "models": len(rows),
        "programs": LISTS * len(rows),
        "programs_that_ran": len(ran),
        "calls": sum(calls.values()),
        "equal": calls["equal"],
        "refused": calls["refused"],
        **{kind.replace(" ", "_"): calls[kind] for kind in FAULTS},
        "refusals": dict(refusals.most_common()),
        "faults": faults,
    }


def show(seed: int, shrink: bool) -> None:
    """One seed, or the smallest case that fails as it does, and what becomes of it."""
    random = case(seed)
    outcomes = checked(random)
    if shrink:
        kinds = {o.kind for o in outcomes} & set(FAULTS)
        random, outcomes = smallest(random, outcomes, kinds, checked)
    print(random)
    for outcome in outcomes:
        print(f"  passes {outcome.passes}, call {outcome.shape}: {outcome.kind} {outcome.what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", type=int, metavar="SEED", help="what becomes of one seed")
    parser.add_argument("--shrink", action="store_true", help="show the smallest that fails so")
    options = parser.parse_args()
    quiet()
    if options.show is not None:
        show(options.show, options.shrink)
        return
    kept = Kept("fuzz")
    seeds = range(options.seed, options.seed - (-options.programs // LISTS))
    missing = kept.missing(seeds)
    bar = tqdm(total=len(seeds), initial=len(seeds) - len(missing), unit="model")
    for row in fresh(missing, options.workers):
        kept.add(row)
        figures = summary(kept.rows, kept.version)
        write("fuzz", figures)
        write_part("reliability", "fuzz", {name: figures[name] for name in COUNTED})
        bar.update()
        bar.set_postfix(faults=sum(kind in FAULTS for r in kept.rows for kind, *_ in r["outcomes"]))
    result = summary(kept.rows, kept.version)
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
