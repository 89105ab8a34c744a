"""What of a capture may be kept for later processes: asked for before it is found anew.

Capture itself keeps nothing.  Who calls it may hand over a place where captures are kept, which
answers for what it returns: that it is what would be found now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.follow import Followed
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.spec import ModelSpec


@dataclass(frozen=True)
class Found:
    """What trials of a model have found.

    Attributes:
        followed: how its inputs follow the frames.
        effects: what its calls do beside computing, which calls of its graph do not.
    """

    followed: Followed
    effects: tuple[str, ...]


class Kept(Protocol):
    """Where captures of one model are kept."""

    def found(self, inputs: Inputs, layout: TokenLayout, find: Callable[[], Found]) -> Found:
        """What is kept of trials for some inputs, else what is found now, which is then kept."""
        ...

    def program(
        self, source: Any, inputs: Inputs, layout: TokenLayout, make: Callable[[], Any]
    ) -> Any:
        """The Program that is kept for some inputs, else the one made now, which is then kept.

        Args:
            source: the `Source` that the Program is of.
            inputs: its inputs.
            layout: their token grid.
            make: traces the model.
        """
        ...


Keeping = Callable[[nn.Module, ModelSpec, dict[str, None]], Kept]
"""Finds the place for a model and its spec; what a report should say of it goes into the notes."""


class NotKept:
    """Nothing is kept."""

    def found(self, inputs: Inputs, layout: TokenLayout, find: Callable[[], Found]) -> Found:
        """See `Kept`."""
        del inputs, layout
        return find()

    def program(
        self, source: Any, inputs: Inputs, layout: TokenLayout, make: Callable[[], Any]
    ) -> Any:
        """See `Kept`."""
        del source, inputs, layout
        return make()


def not_kept(model: nn.Module, spec: ModelSpec, notes: dict[str, None]) -> Kept:
    """The place where nothing is kept."""
    del model, spec, notes
    return NotKept()
