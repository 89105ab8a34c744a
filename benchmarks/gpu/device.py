"""What GPU benchmarks share: the device's name, timing by events, and rows that survive a stop."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import platform
import re
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fisopt.files import write

RESULTS = Path(__file__).parent.parent / "results"
Row = dict[str, Any]


def machine() -> Row:
    """Versions and hardware that a number depends on."""
    from importlib.metadata import PackageNotFoundError, version

    versions: Row = {"torch": torch.__version__}
    for name in ("triton", "fisopt"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    if not torch.cuda.is_available():
        return {"device": platform.processor() or platform.machine(), **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
    }


def folder() -> Path:
    """Where the results of this device go."""
    name = str(machine()["device"]).lower()
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name).strip("-")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that does something with a folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"fisopt-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Rows:
    """The rows of one part, in a JSON file that is whole after each of them.

    Rows of other versions of torch or Triton are dropped: they are measured again; with ``again``
    those that failed, too.
    """

    def __init__(
        self, path: Path, key: tuple[str, ...], minutes: float, again: bool = False
    ) -> None:
        self.path, self.key = path, key
        self.seconds = 60 * minutes
        self.until = time.monotonic() + self.seconds
        self.machine = machine()
        self.rows: list[Row] = [row for row in self._read() if not (again and "failed" in row)]

    def missing(self, todo: Iterable[Row]) -> list[Row]:
        """What has no row yet."""
        known = {self._identity(row) for row in self.rows}
        return [row for row in todo if self._identity(row) not in known]

    def _identity(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)

    @property
    def over(self) -> bool:
        """Whether the part's time is up."""
        return time.monotonic() > self.until

    @property
    def used(self) -> float:
        """The share of the part's time that has passed."""
        return 1 - (self.until - time.monotonic()) / max(self.seconds, 1e-9)

    def unfinished(self, todo: Iterable[Row]) -> list[Row]:
        """What has no row yet, or one that was never timed in turns."""
        done = {self._identity(row) for row in self.rows if "rounds" in row or "failed" in row}
        return [row for row in todo if self._identity(row) not in done]

    def add(self, row: Row) -> None:
        """Keep a row, in the file as well."""
        self.rows.append(row)
        self._write()

    def put(self, row: Row) -> None:
        """Keep a row in the place of the one that was there of the same.

        One that was timed in turns stays where the new one was not, or not yet.
        """
        mine = self._identity(row)
        known = [self._identity(held) for held in self.rows]
        if mine not in known:
            self.add(row)
        elif "rounds" in row or "rounds" not in self.rows[known.index(mine)]:
            self.rows[known.index(mine)] = row
            self._write()

    def _write(self) -> None:
        """Write the rows, and leave those that other processes have added since."""
        with alone(self.path.parent):
            mine = [self._identity(row) for row in self.rows]
            others = [row for row in self._read() if self._identity(row) not in mine]
            held = {"machine": self.machine, "rows": others + self.rows}
            write(self.path, json.dumps(held, indent=1) + "\n")

    def _read(self) -> list[Row]:
        held = json.loads(self.path.read_text()) if self.path.exists() else {}
        rows: list[Row] = held.get("rows", []) if held.get("machine") == self.machine else []
        return rows


def said(error: Exception) -> str:
    """An error in one line of a table."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"


def free_memory() -> None:
    """Give the device's memory back before the next row.

    Ends the process where the device answers no more, as after a wrong address: every row that
    came after would fail with the error of the one before.
    """
    gc.collect()
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        sys.exit(f"the device answers this process no more, run again to go on ({said(error)})")


def milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the GPU, with a cold cache; on a CPU the least of a few."""
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(call, rep=500, return_mode="median"))
    return 1e3 * min(timeit.repeat(call, number=1, repeat=3))
