"""Copies of an optimised module: what it is made of travels, its plans are made again there."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar, Self


class Copies:
    """An object whose copies are made anew, from what `made_of` returns.

    Attributes:
        MADE_OF: names of the options that it was made with, as it keeps them.
    """

    __slots__ = ()
    MADE_OF: ClassVar[tuple[str, ...]]
    original: Any
    passes: Any
    spec: Any

    def made_of(self) -> dict[str, Any]:
        """The arguments of its constructor, by name."""
        own = {name: getattr(self, f"_{name}") for name in self.MADE_OF}
        return {"model": self.original, "passes": self.passes, "spec": self.spec, **own}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _again, (_base(type(self)), self.made_of())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made: Self = _base(type(self))(**deepcopy(self.made_of(), memo))
        memo[id(self)] = made
        return made


def _base(made: Any) -> Any:
    """The class that a module's own class was made under."""
    return next(cls for cls in made.__mro__ if "MADE_OF" in vars(cls))


def _again(cls: Any, made_of: dict[str, Any]) -> Any:
    return cls(**made_of)
