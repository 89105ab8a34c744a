"""Measured: the numbers of earlier steps, as the pass sees them that decides by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fisopt.errors import ScheduleError

Read = Callable[[str, str], Mapping[str, float]]
"""For a pass and the name that it asks for, all that was measured, by "Pass/name"."""


class UnmeasuredError(ScheduleError, KeyError):
    """A measurement is read before any step of this branch has made it; ``get`` may ask for it."""

    __str__ = Exception.__str__


class Measured(Mapping[str, float]):
    """What was measured: a pass's own by the names that it gave, that of others by "Pass/name".

    Args:
        owner: the name of the pass that looks.
        read: returns the measurements; called at every look, and may refuse.
    """

    def __init__(self, owner: str, read: Read) -> None:
        self._owner, self._read = owner, read

    def __getitem__(self, key: str) -> float:
        values = self._read(self._owner, key)
        for full in (f"{self._owner}/{key}", key):
            if full in values:
                return values[full]
        raise UnmeasuredError(
            f"{self._owner} reads measurement {key!r}, which no step of this branch has made yet; "
            "use step.measured.get(...) and let the first steps run without it"
        )

    def __iter__(self) -> Iterator[str]:
        own = f"{self._owner}/"
        return (full.removeprefix(own) for full in self._read(self._owner, ""))

    def __len__(self) -> int:
        return len(self._read(self._owner, ""))


class UndecidedError(ScheduleError):
    """What runs at a step is decided in a running generation, by what is measured there."""


def only_in_a_run(owner: str, key: str) -> Mapping[str, float]:
    """Read outside of a running generation.

    Raises:
        UndecidedError: always.
    """
    raise UndecidedError(
        f"{owner} decides by its measurements (it reads {key!r}), so what runs at a step is known "
        "only in a running generation"
    )
