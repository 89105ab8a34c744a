"""Who may go on while torch traces: tracing happens alone, graphs run beside each other.

Tracing and compiling change state that all threads see: torch exchanges methods of ``nn.Module``,
sets flags that compiled code refuses to run under, and puts back what it found.  Two threads that
trace at once leave it wrong for good, and a graph that runs meanwhile fails.  A thread passes this
gate before it takes any other lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident


class Gate:
    """Lets one thread trace, or any number of threads run; threads may enter again.

    Who waits to trace goes before those who come to run.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._runs: Counter[int] = Counter()
        self._tracer: int | None = None
        self._waiting = self._depth = 0

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Inside, no other thread traces or runs.

        A thread that runs lets go of that meanwhile: two of them would wait for each other.
        """
        me = get_ident()
        with self._changed:
            runs = self._runs.pop(me, 0)
            self._changed.notify_all()
        try:
            self._enter(me)
            try:
                yield
            finally:
                self._leave()
        finally:
            if runs:
                with self._changed:
                    self._changed.wait_for(lambda: self._tracer in (None, me))
                    self._runs[me] = runs

    def _enter(self, me: int) -> None:
        with self._changed:
            if self._tracer != me:
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: self._tracer is None and not self._runs)
                    self._tracer = me
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()
            self._depth += 1

    def _leave(self) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._tracer = None
                self._changed.notify_all()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, no other thread traces."""
        me = get_ident()
        with self._changed:
            if self._tracer != me and me not in self._runs:
                self._changed.wait_for(lambda: self._tracer is None and not self._waiting)
            self._runs[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._runs[me] -= 1
                if not self._runs[me]:
                    del self._runs[me]
                    self._changed.notify_all()


GATE = Gate()
"""The gate of the process."""
tracing, running = GATE.tracing, GATE.running
