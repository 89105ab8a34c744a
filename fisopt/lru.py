"""A bounded mapping: what was used least recently makes room for what is new."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from threading import RLock
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

SIZE = 128
"""How many values a mapping holds where nobody says so."""


class Lru(MutableMapping[Key, Value]):
    """A mapping of at most ``size`` values; threads may share it.

    What is dropped is only let go of: whoever took it from here before keeps it alive.

    Args:
        size: how many values it holds.
        dropped: called with each value that makes room for another.
    """

    def __init__(self, size: int = SIZE, dropped: Callable[[Value], object] | None = None) -> None:
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._size, self._dropped, self._lock = size, dropped, RLock()

    @property
    def size(self) -> int:
        """How many values it holds at most."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        with self._lock:
            self._size = size
            self._make_room()

    def __getitem__(self, key: Key) -> Value:
        with self._lock:
            value = self._held[key]
            self._held.move_to_end(key)
            return value

    def __setitem__(self, key: Key, value: Value) -> None:
        with self._lock:
            self._held[key] = value
            self._held.move_to_end(key)
            self._make_room()

    def __delitem__(self, key: Key) -> None:
        with self._lock:
            del self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[Key]:
        with self._lock:
            return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def _make_room(self) -> None:
        while len(self._held) > self._size:
            _, value = self._held.popitem(last=False)
            if self._dropped is not None:
                self._dropped(value)
