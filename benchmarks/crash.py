"""Processes that are killed while fisopt writes: nothing half, mixed or lost.

    python benchmarks/crash.py [--kills N]

Every kind of file is written over and over, one version over the other, and the process that does
it is killed: at a call that changes the disk, or at some time.  What is there then is one of the
two versions, all of it, and the next write leaves nothing behind.  Commands that keep their
progress are killed until a run is whole; what it wrote equals what an uninterrupted run writes.  A
limit on the size of files does what a full disk does.

What is done is kept beside the results as long as the package and the harness are the same, so
that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_part
from kept import ROOT, Kept, Row
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.crash import progress, writers
from tests.crash.trial import RIGHT, Trials

SHARES = {"small": 0.46, "large": 0.46, "progress": 0.08}
"""How the kills are shared out."""
FULL = 0.2
"""Writes to a full disk for each kill of a writer."""


def add(kept: Kept, row: Row) -> None:
    """Keep a row, and write the results so far."""
    kept.add(row)
    write_part("reliability", "crash", summary(kept))


def counted(kept: Kept, name: str, kind: str) -> int:
    """How many rows of a case there are."""
    return sum(r["count"] for r in kept.rows if (r["case"], r["kind"]) == (name, kind))


def summary(kept: Kept) -> Row:
    """The figures."""
    cases: dict[str, Counter[str]] = {}
    for row in kept.rows:
        found = cases.setdefault(row["case"], Counter())
        found[row["kind"]] += row["count"]
        for outcome, count in row["outcomes"].items():
            found[f"{row['kind']}, {outcome}"] += count
    faults = [{"case": r["case"], "fault": fault} for r in kept.rows for fault in r["faults"]]
    return {
        "machine": machine(),
        "what": "processes killed (SIGKILL) while they write, and writes to a full disk",
        "code": kept.version,
        "kills": sum(found["kill"] for found in cases.values()),
        "full_disk": sum(found["full"] for found in cases.values()),
        "half_mixed_lost_or_left_over": len(faults),
        "faults": faults,
        "cases": {name: dict(found) for name, found in cases.items()},
    }


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=ROOT / "benchmarks", prefix=".crash-") as folder:
        yield Path(folder) / "here"


def of_writer(writer: writers.Writer, kills: int, kept: Kept, bar: tqdm[Any]) -> None:
    """Kill a writer as often as is missing."""
    full = round(FULL * kills)
    missing = kills - counted(kept, writer.name, "kill")
    missing_full = full - counted(kept, writer.name, "full")
    if missing <= 0 and missing_full <= 0:
        return
    trials = Trials(writer, seed=missing)
    while missing > 0 or missing_full > 0:
        kind = "kill" if missing > 0 else "full"
        outcome = trials.one() if kind == "kill" else trials.full()
        if kind == "kill" and outcome.death == "done":
            kind = "ended before it was killed"
        missing -= kind == "kill"
        missing_full -= kind == "full"
        faults = [] if outcome.kind in RIGHT else [asdict(outcome)]
        row = {"case": writer.name, "kind": kind, "count": 1, "faults": faults}
        add(kept, {**row, "outcomes": {outcome.kind: 1}})
        bar.update(kind == "kill")
        bar.set_postfix_str(f"{writer.name}: {kind}, {outcome.kind}")


def of_job(job: progress.Job, kills: int, kept: Kept, bar: tqdm[Any]) -> None:
    """Kill a job as often as is missing, some kills and whole runs at a time."""
    while (missing := kills - counted(kept, job.name, "kill")) > 0:
        with scratch() as folder:
            done = progress.again_and_again(job, folder, missing, min(missing, 15), bar.update)
        row = {"case": job.name, "kind": "kill", "count": done["kills"], "faults": done["wrong"]}
        add(kept, {**row, "outcomes": {"runs that equal an uninterrupted one": done["runs"]}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = Kept("crash")
    done = sum(row["count"] for row in kept.rows if row["kind"] == "kill")
    bar = tqdm(total=options.kills, initial=done, unit="kill")
    for share, make in (("small", writers.small), ("large", writers.large)):
        with scratch() as folder:
            made = make(folder)
            for writer in made:
                kills = -(-round(options.kills * SHARES[share]) // len(made))
                of_writer(writer, kills, kept, bar)
    for job in progress.JOBS:
        of_job(job, -(-round(options.kills * SHARES["progress"]) // len(progress.JOBS)), kept, bar)
    result = summary(kept)
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    if result["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
