"""What of a Program is divided: the tokens of every frame, or the items of the batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fisopt.passes.sharding.shard import Shard
from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.relations import virtual_shape


@dataclass(frozen=True)
class What(ABC):
    """Something that ranks divide.

    Attributes:
        count: how many entries it has: tokens of a frame, items of the batch.
        word: how notes call the entries.
        exchanges: whether an operator that combines them may run on a part of something else.
    """

    word: ClassVar[str]
    exchanges: ClassVar[bool]

    count: int

    @abstractmethod
    def home(self, node: fx.Node) -> Shard | None:
        """Where a value has them by itself, None where that is not known or it has none."""

    @abstractmethod
    def given(self, node: fx.Node) -> Shard | None:
        """How an input of the Program is divided at once, None if where it is met."""


class FrameTokens(What):
    """The tokens of every frame; blocks take them where frames lie."""

    word, exchanges = "tokens", True

    def home(self, node: fx.Node) -> Shard | None:
        """See `What`."""
        sizes, tokens = virtual_shape(node), self.count
        for d, axis in enumerate(axes_of(node)):
            if axis is not None and axis.inner % tokens == 0:
                place = (axis.outer * axis.frames, axis.inner // tokens, axis.before, axis.after)
                return Shard(d, FrameAxis(tokens, *place))
        if any(axis is not None for axis in axes_of(node)):
            for d, axis in enumerate(axes_of(node)):
                if axis is None and d + 1 < len(sizes) and sizes[d] == tokens:
                    return Shard(d, FrameAxis(tokens))
        return None

    def given(self, node: fx.Node) -> Shard | None:
        """See `What`; what is before the blocks runs on all tokens."""
        return None


class Items(What):
    """The items of the batch, which inputs have as their first dimension."""

    word, exchanges = "items of the batch", False

    def home(self, node: fx.Node) -> Shard | None:
        """See `What`; they are followed from the inputs."""
        return None

    def given(self, node: fx.Node) -> Shard | None:
        """See `What`."""
        fits = virtual_shape(node)[:1] == (self.count,)
        return Shard(0, FrameAxis(self.count)) if fits else None
