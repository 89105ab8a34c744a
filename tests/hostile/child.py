"""A process that reads files under watch; it is made anew where it crashes, hangs or grows."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 5.0
BYTES = 1 << 30
_PATIENCE = 60.0
"""Seconds until a file counts as one that hangs, far above those that it may take."""


class Child:
    """Reads files in a process of its own, in which an audit hook watches.

    Args:
        folder: where files may be read.
        warm: a kind and a path of whole files, read before the hook watches.
    """

    def __init__(self, folder: Path, warm: Sequence[tuple[str, Path]]) -> None:
        self.folder, self.warm = folder, warm
        self._start()

    def _start(self) -> None:
        path = os.pathsep.join([str(ROOT), str(self.folder)])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.hostile.watched", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for kind, whole in self.warm:
            answer = self._ask(f"{kind} warm:{whole}", 300)
            assert answer["outcome"] == "read", answer

    def read(self, kind: str, path: Path) -> dict[str, Any]:
        """Read a file: what came of it, the seconds, the bytes and what was seen."""
        answer = self._ask(f"{kind} {path}", _PATIENCE)
        if answer["outcome"].startswith("failed Process"):
            self.close()
            self._start()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, line: str, seconds: float) -> dict[str, Any]:
        held = self._process
        assert held.stdin is not None
        assert held.stdout is not None
        held.stdin.write(line + "\n")
        if not select.select([held.stdout], [], [], seconds)[0]:
            return {
                "outcome": "failed Process: it hangs",
                "seconds": seconds,
                "bytes": 0,
                "seen": [],
            }
        if not (said := held.stdout.readline()):
            return {"outcome": "failed Process: it ended", "seconds": 0.0, "bytes": 0, "seen": []}
        answer: dict[str, Any] = json.loads(said)
        return answer


def wrong(answer: dict[str, Any]) -> str | None:
    """What is wrong with how a file was read, None if nothing is."""
    if answer["outcome"].startswith("failed"):
        return str(answer["outcome"])
    if answer["seen"]:
        return f"saw {answer['seen']}"
    if answer["seconds"] > SECONDS:
        return f"took {answer['seconds']:.1f} s"
    if answer["bytes"] > BYTES:
        return f"took {answer['bytes'] / 1e9:.1f} GB"
    return None
