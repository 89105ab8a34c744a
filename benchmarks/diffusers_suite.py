"""diffusers' own tests of its video pipelines, every transformer optimised with no passes.

    git clone --depth 1 --branch v0.42.1 https://github.com/huggingface/diffusers /tmp/diffusers
    pip install parameterized requests-mock
    python benchmarks/diffusers_suite.py /tmp/diffusers [--only wan ltx] [--stand-ins]

The tests of the checkout run against the diffusers that is installed: once as they are, and once
with `fisopt.optimize(pipeline, passes=[], backend="eager")` as each pipeline is made.  A test is

- passed: it passes optimised;
- refused: it fails by an error of fisopt, whose reasons are listed;
- failing without fisopt: it fails plain too, in the same way;
- failed: anything else.

Tests that diffusers skips on this machine, such as those for a GPU, are counted apart.  One that is
stopped goes on.  ``--stand-ins`` is for a machine without the Hub.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from harness import machine, write
from kept import Kept, Row
from suite import stand_ins

PIPELINES = {
    "wan": "Wan",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan_video1_5": "HunyuanVideo 1.5",
    "cogvideo": "CogVideoX",
    "ltx": "LTX",
    "mochi": "Mochi",
    "allegro": "Allegro",
    "latte": "Latte",
}
"""Folders of diffusers' tests, and the pipelines."""
MODES = ("plain", "optimised")
KINDS = ("passed", "refused", "failed", "failing without fisopt", "skipped")


def run(checkout: Path, folder: str, mode: str, hub: Path | None) -> list[Row]:
    """Run the tests of one folder; what became of each.

    Raises:
        RuntimeError: pytest did not come to its end.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        here = [str(Path(__file__).parent), *sys.path]
        environment = {
            **os.environ,
            "FISOPT_SUITE": mode,
            "FISOPT_SUITE_ROWS": str(rows),
            "PYTHONPATH": os.pathsep.join(filter(None, here)),
        }
        if hub is not None:
            environment |= {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "suite.plugin", "--tb=no"]
        tests = f"tests/pipelines/{folder}"
        done = subprocess.run(
            [*pytest, "-p", "no:cacheprovider", tests],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return [json.loads(line) for line in rows.read_text().splitlines()]


def kind(plain: Row, optimised: Row) -> str:
    """Which of `KINDS` a test is."""
    if optimised["outcome"] in ("passed", "skipped"):
        return str(optimised["outcome"])
    if plain["outcome"] == "failed" and _form(plain) == _form(optimised):
        return "failing without fisopt"
    return "refused" if optimised["refusal"] else "failed"


def _form(row: Row) -> str:
    """The message of an error, without the numbers in it."""
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "0", row["error"])


def summary(rows: list[Row]) -> dict[str, Any]:
    """Counts for each pipeline, reasons of refusals, and what failed."""
    tests: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        tests[row["test"]][row["mode"]] = row
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    refusals: dict[str, list[str]] = defaultdict(list)
    failed = {}
    for test, modes in tests.items():
        if len(modes) < len(MODES):
            raise RuntimeError(f"{test} ran {' and '.join(modes)} only")
        plain, optimised = (modes[mode] for mode in MODES)
        counts[optimised["folder"]][found := kind(plain, optimised)] += 1
        if found == "refused":
            refusals[optimised["refusal"]].append(test)
        elif found == "failed":
            failed[test] = {"plain": plain["error"], "optimised": optimised["error"]}
    return {
        "pipelines": {
            PIPELINES[folder]: {kind: counted[kind] for kind in KINDS}
            for folder, counted in counts.items()
        },
        "not run": [name for folder, name in PIPELINES.items() if folder not in counts],
        "total": {kind: sum(c[kind] for c in counts.values()) for kind in KINDS},
        "refusals": dict(sorted(refusals.items(), key=lambda pair: -len(pair[1]))),
        "failed": failed,
    }


def main() -> None:
    """Run what is missing, and write `benchmarks/results/diffusers_suite.json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="of the tag of the diffusers installed")
    parser.add_argument("--only", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--stand-ins", action="store_true", help="for tiny files of the Hub")
    given = parser.parse_args()
    kept = Kept("diffusers_suite")
    with tempfile.TemporaryDirectory() as scratch:
        hub = Path(scratch) if given.stand_ins else None
        if hub is not None:
            stand_ins.make(hub)
        for folder in given.only:
            for mode in MODES:
                if any((r["folder"], r["mode"]) == (folder, mode) for r in kept.rows):
                    continue
                print(f"{PIPELINES[folder]}, {mode}", flush=True)
                for row in run(given.checkout, folder, mode, hub):
                    kept.add({"folder": folder, "mode": mode, **row})
    said = re.search(
        r'^ *version="([^"]+)"', (given.checkout / "setup.py").read_text(), re.MULTILINE
    )
    result = {
        **machine(),
        "tests of diffusers": said[1] if said else "unknown",
        "stand-ins": given.stand_ins,
        **summary(kept.rows),
    }
    print(f"{write('diffusers_suite', result)}: {result['total']}")


if __name__ == "__main__":
    main()
