"""Inputs that were seen: whether those of another call have the same values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fisopt.rewrite.tracing.inputs import Inputs


class SeenInputs:
    """The inputs of a call as they were when it was made.

    Tensors are not copied: what is written into one later counts as another value.  Those that
    keep no count of writes, which inference mode makes, are copied.

    Attributes:
        inputs: the inputs.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs.replaced([_kept(x) for x in inputs.leaves])
        self._given = inputs.leaves
        self._versions = tuple(map(_version, inputs.leaves))
        self._places = {name: i for i, name in enumerate(inputs.names)}

    def differs(self, other: Inputs, names: Iterable[str] | None = None) -> list[str]:
        """The names of inputs whose values in another call differ.

        Args:
            other: the inputs of the other call.
            names: those to look at; None for all of both.
        """
        wanted = {*self.inputs.names, *other.names} if names is None else set(names)
        theirs = {name: i for i, name in enumerate(other.names)}
        return sorted(
            name
            for name in wanted
            if (name in self._places) != (name in theirs)
            or (name in theirs and not self._same(self._places[name], other.leaves[theirs[name]]))
        )

    def _same(self, place: int, other: Any) -> bool:
        held, version = self.inputs.leaves[place], self._versions[place]
        if not isinstance(held, Tensor) or not isinstance(other, Tensor):
            return type(held) is type(other) and bool(held == other)
        if version is not None and _version(self._given[place]) != version:
            return False
        if version is not None and other is self._given[place]:
            return True
        form = (held.shape, held.dtype, held.device)
        return form == (other.shape, other.dtype, other.device) and torch.equal(held, other)


def _version(x: Any) -> int | None:
    """How often a tensor was written into, None if it does not count that."""
    return x._version if isinstance(x, Tensor) and not x.is_inference() else None


def _kept(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
