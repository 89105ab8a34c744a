"""One clip, one set of adapters: a change of adapters within a generation is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fisopt.errors import InputError
from fisopt.runtime.fingerprint import Fingerprint


@dataclass(frozen=True)
class _Call:
    """What acted in one call.

    Attributes:
        clip: what tells one generation from others, None if nothing does.
        adapters: the names of those that act on each layer.
        exchanges: how often adapters were exchanged before.
    """

    clip: Any
    adapters: Mapping[str, tuple[str, ...]]
    exchanges: int


class SameAdapters:
    """Compares the adapters of a call with those of the call before in its generation.

    Args:
        model: the model.
        clip: returns something that is one and the same object within one generation, None where
            no pipeline calls and no generation is open.
    """

    def __init__(self, model: nn.Module, clip: Callable[[], Any]) -> None:
        self._model, self._clip, self._local = model, clip, threading.local()
        self._exchanges = 0

    def exchanged(self) -> None:
        """Take note that an adapter may have been written into the weights of another."""
        self._exchanges += 1

    def check(self, state: Fingerprint) -> None:
        """Take note of a call in some state of the model.

        Raises:
            InputError: other adapters acted earlier in the same generation.
        """
        before: _Call | None = getattr(self._local, "before", None)
        now = _Call(self._clip(), state.adapters, self._exchanges)
        if before is not None and (change := _change(before, now)):
            raise InputError(
                f"{type(self._model).__name__}: adapters changed in the middle of a generation: "
                f"{change}. The clip would mix two models: change them between generations. "
                "Strengths may change at any step (set_adapters with the same names, "
                "attention_kwargs={'scale': ...}), and 0 turns an adapter off"
            )
        self._local.before = now


def _change(before: _Call, now: _Call) -> str:
    """What differs within one clip, in words; empty if nothing does."""
    if now.clip is None or before.clip is not now.clip:
        return ""
    if before.adapters is not now.adapters:
        for path in dict.fromkeys((*before.adapters, *now.adapters)):
            was, there = before.adapters.get(path, ()), now.adapters.get(path, ())
            if was != there:
                return f"{path} had {list(was)}, has {list(there)}"
    return "another was loaded" if before.exchanges != now.exchanges else ""
