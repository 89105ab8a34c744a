"""Processes that are killed (SIGKILL) while they write: at a chosen call, or at some time.

They are forked from this one, which has imported everything and holds the models.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fisopt import renames

CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
"""Calls of `os` that change what is on the disk, or bring it there."""
EXCHANGE = "_renamed"
"""And those of `fisopt.renames`."""


@dataclass(frozen=True)
class Death:
    """When a process dies: before or after a call that changes the disk, or after some time.

    Attributes:
        point: the number of the point; two for each call.
        seconds: the time from its start; if both are None it lives.
    """

    point: int | None = None
    seconds: float | None = None


def run(work: Callable[[], Any], death: Death = Death()) -> str:
    """Do some work in a process of its own.

    Returns:
        "killed", the text that the work returned, "done" if it returned none, or what it raised.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        _work(work, death, tell)
    os.close(tell)
    if death.seconds is not None and not select.select([told], [], [], death.seconds)[0]:
        os.kill(child, signal.SIGKILL)
    said = b""
    while part := os.read(told, 1 << 16):
        said += part
    os.close(told)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    return said.decode(errors="replace") or f"ended with status {status}"


def _work(work: Callable[[], Any], death: Death, tell: int) -> None:
    """The life of the child, which ends here."""
    code = 1
    try:
        if death.point is not None:
            arm(death.point)
        said = work()
        os.write(tell, said.encode() if isinstance(said, str) else b"done")
        code = 0
    except BaseException:
        os.write(tell, traceback.format_exc(limit=-4).encode()[-2000:])
    finally:
        sys.stdout.flush()
        os._exit(code)


def points_of(work: Callable[[], object]) -> int:
    """How many points a process passes that does some work and lives."""

    def counted() -> str:
        passed = arm(-1)
        work()
        return str(passed())

    return int(run(counted))


def arm(point: int) -> Callable[[], int]:
    """Kill this process when it has passed so many points.

    Returns:
        What tells how many it has passed.
    """
    passed = 0

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            result = real(*args, **kwargs)
            step()
            return result

        return call

    def step() -> None:
        nonlocal passed
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    setattr(renames, EXCHANGE, mortal(getattr(renames, EXCHANGE)))
    return lambda: passed
