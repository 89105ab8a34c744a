"""One kill: what a writer leaves, and whether the next use puts it right."""

from __future__ import annotations

import random
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from fisopt.errors import FisoptError
from fisopt.files import remove, write
from fisopt.staging import recover
from tests.crash.kill import Death, points_of, run
from tests.crash.writers import Writer, left_over


@dataclass(frozen=True)
class Outcome:
    """What became of a write that was to be killed.

    Attributes:
        kind: "old", "new", or what went wrong: "half", "mixed or lost", "left over", "not told",
            "raised".
        what: more of it.
        death: when it was killed; "done" if it was not.
    """

    kind: str
    what: str
    death: str


RIGHT = ("old", "new")


class Trials:
    """Kills of one writer, each from the version that the one before it left.

    Args:
        writer: the writer; its files are written once, to see how long that takes.
        seed: of the times and points.
    """

    def __init__(self, writer: Writer, seed: int) -> None:
        self.writer, self.random = writer, random.Random(f"{writer.name} {seed}")
        writer.write(0)
        self.there = writer.read()
        start = time.perf_counter()
        writer.write(1)
        self.seconds = time.perf_counter() - start
        self.there = writer.read()
        self.points = points_of(lambda: writer.write(1 - self.there))
        self.there = writer.read()

    def one(self) -> Outcome:
        """Kill it once: in two of three cases at a call that changes the disk."""
        if self.random.random() < 2 / 3:
            death = Death(point=self.random.randrange(self.points))
        else:
            death = Death(seconds=self.random.random() * 1.1 * self.seconds)
        old, new = self.there, 1 - self.there
        end = run(lambda: self.writer.write(new), death)
        at = "done" if end == "done" else str(death)
        if end not in ("done", "killed"):
            return Outcome("raised", end, at)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recover(self.writer.path)
                self.there = self.writer.read()
        except Exception as error:
            self.there = self._anew()
            return Outcome("mixed or lost", f"{type(error).__name__}: {error}", at)
        if end == "done" and self.there != new:
            return Outcome("mixed or lost", "it was written, and the old one is there", at)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            probe = write(self.writer.path.with_name("probe"), "")
        remove(probe)
        if left := left_over(self.writer):
            self.there = self._anew()
            return Outcome("left over", ", ".join(left), at)
        if end == "done" and told:
            return Outcome("not told", f"told though nothing was left: {told[0].message}", at)
        return Outcome("old" if self.there == old else "new", "", at)

    def full(self) -> Outcome:
        """Write it where no file may grow beyond some size, as on a disk that is full then."""
        files = (f for f in self.writer.path.parent.rglob("*") if f.is_file())
        size = int(self.random.random() * max(f.stat().st_size for f in files))
        old, new = self.there, 1 - self.there
        end = run(lambda: _within(size, lambda: self.writer.write(new)))
        at = f"no file beyond {size} bytes"
        if end not in ("done", "refused"):
            return Outcome("raised", end, at)
        try:
            self.there = self.writer.read()
        except Exception as error:
            self.there = self._anew()
            return Outcome("mixed or lost", f"{type(error).__name__}: {error}", at)
        if self.there != (new if end == "done" else old):
            return Outcome("mixed or lost", f"{end}, and the other one is there", at)
        if left := left_over(self.writer):
            return Outcome("left over", ", ".join(left), at)
        return Outcome("new" if end == "done" else "old", "", at)

    def _anew(self) -> int:
        self.writer.write(0)
        return self.writer.read()


def _within(size: int, work: Callable[[], object]) -> str:
    """Do some work with a limit on the size of files; "refused" where it raises our error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except FisoptError:
        return "refused"
    return "done"
