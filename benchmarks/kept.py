"""Rows of a run that takes long, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness import RESULTS

import fisopt

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]


def code(harness: str) -> str:
    """A digest of what rows certify: the package, and a folder of ``tests`` that makes the rows."""
    digest = hashlib.blake2b(digest_size=6)
    package = Path(fisopt.__file__).parent
    for path in sorted([*package.rglob("*.py"), *(ROOT / "tests" / harness).glob("*.py")]):
        if not path.name.startswith("test_"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Kept:
    """The rows of this code, kept beside the results; those of other code are left where they are.

    Args:
        harness: the folder of ``tests`` that makes the rows.

    Attributes:
        version: the digest of the code.
        path: the file, a row a line.
        rows: what is done.
    """

    def __init__(self, harness: str) -> None:
        self.version = code(harness)
        self.path = RESULTS / f"{harness}.partial.jsonl"
        self.rows: list[Row] = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if row["code"] == self.version:
                self.rows.append(row)

    def add(self, row: Row) -> None:
        """Keep a row."""
        row = {"code": self.version, **row}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def missing(self, seeds: range) -> list[int]:
        """The seeds of which there is no row."""
        done = {row["seed"] for row in self.rows}
        return [seed for seed in seeds if seed not in done]
