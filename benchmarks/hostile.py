"""Read mutated files under an audit hook: only errors of fisopt, nothing imported, nothing run.

    python benchmarks/hostile.py [--files N] [--seed S]
    python benchmarks/hostile.py --show SEED

A seed is a mutant of a whole file: its bytes or the values in it, of artefacts mostly with
digests that fit.  Each is read in a process in which an audit hook watches imports, executed
code and opened files; it may take 5 seconds and 1 GB.  A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from harness import machine, write_part
from kept import Kept, Row
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.hostile.child import Child, wrong
from tests.hostile.whole import corpus, warm


def summary(rows: list[Row], version: str) -> dict[str, Any]:
    """The figures of some rows."""
    outcomes = Counter(row["outcome"].split(":")[0] for row in rows)
    faults = [
        {"seed": row["seed"], "kind": row["kind"], "what": row["wrong"]}
        for row in sorted(rows, key=lambda row: row["seed"])
        if row["wrong"]
    ]
    return {
        "machine": machine(),
        "what": "mutated files, each read under an audit hook",
        "code": version,
        "files": len(rows),
        "kinds": dict(Counter(row["kind"] for row in rows).most_common()),
        "outcomes": dict(outcomes.most_common()),
        "wrong": len(faults),
        "slowest_seconds": round(max(row["seconds"] for row in rows), 2),
        "most_bytes": max(row["bytes"] for row in rows),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--show", type=int, metavar="SEED", help="what becomes of one seed")
    options = parser.parse_args()
    kept, showing = Kept("hostile"), options.show is not None
    seeds = range(options.seed, options.seed + options.files)
    missing = [options.show] if showing else kept.missing(seeds)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        folder = Path(base) / "read"
        folder.mkdir()
        whole = corpus(Path(base))
        child = Child(folder, warm(whole))
        bar = tqdm(total=len(seeds), initial=len(seeds) - len(missing), unit="file")
        for seed in missing:
            kind, path = whole.mutated(seed, folder)
            answer = child.read(kind, path)
            row = {"seed": seed, "kind": kind, **answer, "wrong": wrong(answer)}
            if showing:
                print(json.dumps(row, indent=1))
                break
            shutil.rmtree(folder)
            folder.mkdir()
            kept.add(row)
            bar.update()
            bar.set_postfix(wrong=sum(bool(r["wrong"]) for r in kept.rows))
        child.close()
    if not showing:
        figures = summary(kept.rows, kept.version)
        write_part("reliability", "hostile", figures)
        print(json.dumps({k: v for k, v in figures.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
