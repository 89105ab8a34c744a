"""What a command does now and for how long, on stderr; also where that is a pipe or a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import Progress
from rich.status import Status
from rich.text import Text

LONG = 2.0
"""Seconds after which a stage is worth a line."""
OFTEN = 15.0
"""Seconds between lines of a bar that no terminal shows."""


class Stages:
    """The stages of a command, one after another.

    Each is a line once it has taken `LONG` seconds: where a terminal shows the stage that runs, the
    line comes at its end; elsewhere there is one when it has become long, and one at its end.

    Args:
        console: where to write.
        status: the moving line of a terminal, None elsewhere.
    """

    def __init__(self, console: Console, status: Status | None) -> None:
        self._console, self._status = console, status
        self._doing, self._began = "", 0.0
        self._timer: threading.Timer | None = None

    def update(self, doing: str) -> None:
        """End the stage before, begin another one."""
        self.end()
        self._doing, self._began = doing, time.perf_counter()
        if self._status is not None:
            self._status.update(doing)
            return
        self._timer = threading.Timer(LONG, self._say, [f"{doing} ..."])
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """End the stage that runs."""
        if self._timer is not None:
            self._timer.cancel()
        took = time.perf_counter() - self._began
        if self._doing and took >= LONG:
            self._say(f"{self._doing}: {took:.1f} s")
        self._doing = ""

    def _say(self, line: str) -> None:
        self._console.print(Text(line, style="dim"), soft_wrap=True)


@contextmanager
def stages(doing: str, console: Console | None = None) -> Iterator[Stages]:
    """Show a first stage, and those that follow by `Stages.update`, on stderr."""
    console = console or Console(stderr=True, highlight=False)
    with console.status(doing) if console.is_terminal else nullcontext() as status:
        shown = Stages(console, status)
        shown.update(doing)
        try:
            yield shown
        finally:
            shown.end()


@contextmanager
def told(progress: Progress) -> Iterator[None]:
    """Say in lines how far bars are, where no terminal shows them."""
    if progress.console.is_terminal:
        yield
        return
    done, began = threading.Event(), time.perf_counter()

    def tell() -> None:
        wait = LONG
        while not done.wait(wait):
            wait = OFTEN
            for task in progress.tasks:
                of = "" if task.total is None else f" of {task.total:g}"
                spent = time.perf_counter() - began
                line = f"{task.description}: {task.completed:g}{of} done, {spent:.0f} s"
                progress.console.print(Text(line, style="dim"), soft_wrap=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
