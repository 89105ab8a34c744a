"""Read mutated files under an audit hook: only errors of fisopt, nothing imported, nothing run.

    python benchmarks/hostile.py [--files N] [--seed S]
    python benchmarks/hostile.py --show SEED

A seed is a mutant of a whole file: its bytes or the values in it, of artefacts mostly with
digests that fit.  Each is read in a process in which an audit hook watches imports, executed
code and opened files; it may take 5 seconds and 1 GB.  A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from harness import RESULTS, machine, write
from tqdm import tqdm

import fisopt

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.hostile.child import Child, wrong
from tests.hostile.whole import corpus, warm

ROOT = Path(__file__).parent.parent
ROWS = RESULTS / "hostile.partial.jsonl"
NAME = "reliability"


def code() -> str:
    """A digest of what the rows certify: the package and the generator."""
    digest = hashlib.blake2b(digest_size=6)
    package = Path(fisopt.__file__).parent
    for path in sorted([*package.rglob("*.py"), *(ROOT / "tests" / "hostile").glob("*.py")]):
        if not path.name.startswith("test_"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def kept(version: str) -> dict[int, dict[str, Any]]:
    """The rows of this code that are there already."""
    rows: dict[int, dict[str, Any]] = {}
    for line in ROWS.read_text().splitlines() if ROWS.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if row["code"] == version:
            rows[row["seed"]] = row
    return rows


def summary(rows: dict[int, dict[str, Any]], version: str) -> dict[str, Any]:
    """The figures of some rows."""
    outcomes = Counter(row["outcome"].split(":")[0] for row in rows.values())
    faults = [
        {"seed": seed, "kind": row["kind"], "what": row["wrong"]}
        for seed, row in sorted(rows.items())
        if row["wrong"]
    ]
    return {
        "machine": machine(),
        "what": "mutated files, each read under an audit hook",
        "code": version,
        "files": len(rows),
        "kinds": dict(Counter(row["kind"] for row in rows.values()).most_common()),
        "outcomes": dict(outcomes.most_common()),
        "wrong": len(faults),
        "slowest_seconds": round(max(row["seconds"] for row in rows.values()), 2),
        "most_bytes": max(row["bytes"] for row in rows.values()),
        "faults": faults,
    }


def keep(figures: dict[str, Any]) -> None:
    """Write the figures beside those of other runs in the same file."""
    path = RESULTS / f"{NAME}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    write(NAME, {**held, "hostile": figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--show", type=int, metavar="SEED", help="what becomes of one seed")
    options = parser.parse_args()
    version = code()
    rows = {} if options.show is not None else kept(version)
    first, count = (options.seed, options.files) if options.show is None else (options.show, 1)
    missing = [seed for seed in range(first, first + count) if seed not in rows]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        folder = Path(base) / "read"
        folder.mkdir()
        whole = corpus(Path(base))
        child = Child(folder, warm(whole))
        bar = tqdm(missing, initial=count - len(missing), total=count, unit="file")
        with ROWS.open("a") as file:
            for seed in bar:
                kind, path = whole.mutated(seed, folder)
                answer = child.read(kind, path)
                row = {"code": version, "seed": seed, "kind": kind, **answer}
                row["wrong"] = wrong(answer)
                if options.show is not None:
                    print(json.dumps(row, indent=1))
                    break
                shutil.rmtree(folder)
                folder.mkdir()
                rows[seed] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                bar.set_postfix(wrong=sum(bool(r["wrong"]) for r in rows.values()))
        child.close()
    if options.show is None:
        figures = summary(rows, version)
        keep(figures)
        print(json.dumps({k: v for k, v in figures.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
