"""Benchmarks that compile side by side on one GPU and are timed one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from device import alone

TURNS = "FISOPT_TURNS"
"""Names the folder where those that run side by side say that they are ready."""
COMPILING = 0.6
"""The share of its time after which one of several compiles nothing more."""
_GO = "go"
_POLL = 0.2


def side_by_side() -> bool:
    """Whether this process is one of several."""
    return TURNS in os.environ


@contextmanager
def turn(name: str, until: float) -> Iterator[None]:
    """Wait until nobody compiles or tests, then be the only one that is timed.

    Args:
        name: this one's name.
        until: on the monotonic clock, when to go ahead though others are not ready.
    """
    if not side_by_side():
        yield
        return
    folder = Path(os.environ[TURNS])
    (folder / _file(name)).touch()
    while not (folder / _GO).exists() and time.monotonic() < until:
        time.sleep(_POLL)
    with alone(folder):
        yield


def run_together(commands: Mapping[str, Sequence[str]], cwd: Path, left: float) -> list[str]:
    """Run commands side by side, and give the word when each is ready or has ended.

    Args:
        commands: each with the name that it takes its turn by.
        cwd: where they run.
        left: seconds after which what still runs is ended.

    Returns:
        The names of those that failed or were ended.
    """
    until = time.monotonic() + left
    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name), {**os.environ, TURNS: name}
        running = {
            key: subprocess.Popen(command, cwd=cwd, env=environment)
            for key, command in commands.items()
        }
        while any(p.poll() is None for p in running.values()) and time.monotonic() < until:
            waiting = (k for k, p in running.items() if p.poll() is None)
            if all((folder / _file(k)).exists() for k in waiting):
                (folder / _GO).touch()
            time.sleep(_POLL)
        for process in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    return [key for key, process in running.items() if process.returncode]


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".ready"
