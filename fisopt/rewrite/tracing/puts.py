"""Puts: what a model leaves in the containers of its arguments, such as a cache that has grown.

A graph knows values, not who holds them.  So what forward has put into a dict or a list that it was
given is found by comparing, and put there again after every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError, InputError

Keys = tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """Stands for a tensor that the graph returns.

    Attributes:
        shape: its sizes.
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Put:
    """An entry of a dict or a list that a model is given and sets anew, or adds.

    Attributes:
        keys: what leads to it: the name of the argument, then keys and places.
        structure: the nesting of what is put there.
        leaves: what is put there; `Result` stands for a tensor that the graph returns.
    """

    keys: Keys
    structure: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Its path, as inputs are named."""
        return "_".join(map(str, self.keys))

    @property
    def results(self) -> list[Result]:
        """The results of the graph that it takes, in order."""
        return [x for x in self.leaves if isinstance(x, Result)]

    def place(self, given: Mapping[str, Any], tensors: Iterator[torch.Tensor]) -> None:
        """Put it into the containers of a call's arguments."""
        leaves = [next(tensors) if isinstance(x, Result) else x for x in self.leaves]
        value = pytree.tree_unflatten(leaves, self.structure)
        holder: Any = given
        *way, last = self.keys
        for key in way:
            holder = holder[key]
        if isinstance(holder, list) and last == len(holder):
            holder.append(value)
        else:
            holder[last] = value


def put_into(
    model: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[Put], list[torch.Tensor]]:
    """What a call has put into the containers of its arguments, and the tensors among it.

    Args:
        model: its name, for errors.
        before: the arguments, in containers that the call has not seen.
        after: the same leaves, in the containers that it was given.

    Raises:
        CaptureError: entries were taken out, or set in a container that is neither dict nor list.
    """
    puts: list[Put] = []
    tensors: list[torch.Tensor] = []
    for keys, value in _set(model, dict(before), dict(after), ()):
        leaves, structure = pytree.tree_flatten(value)
        tensors += [x for x in leaves if isinstance(x, torch.Tensor)]
        held = (Result(tuple(x.shape)) if isinstance(x, torch.Tensor) else x for x in leaves)
        puts.append(Put(keys, structure, tuple(held)))
    return puts, tensors


def _set(model: str, old: Any, new: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """The entries that differ, the outermost that can be set."""
    before, now = _entries(old), _entries(new)
    if before is None or now is None or type(old) is not type(new):
        if not _same(old, new):
            yield keys, new
        return
    if gone := [key for key in before if key not in now]:
        raise CaptureError(
            f"{model} takes {gone[0]!r} out of argument {_said(keys)}, which no graph can do; let "
            "it set another value, or do that outside forward"
        )
    for key, value in now.items():
        if key not in before:
            yield (*keys, key), value
        else:
            yield from _set(model, before[key], value, (*keys, key))


def _entries(value: Any) -> dict[Any, Any] | None:
    """The entries of a container whose entries can be set."""
    if isinstance(value, dict):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, list) else None


def _same(old: Any, new: Any) -> bool:
    """Whether two values hold the same tensors, and equal plain values."""
    (a, one), (b, other) = pytree.tree_flatten(old), pytree.tree_flatten(new)
    return one == other and all(
        x is y or (not isinstance(x, torch.Tensor) and type(x) is type(y) and x == y)
        for x, y in zip(a, b, strict=True)
    )


def place(
    given: Mapping[str, Any] | None, puts: Sequence[Put], tensors: Sequence[torch.Tensor]
) -> None:
    """Put everything where the model would have.

    Raises:
        InputError: the arguments themselves are not known, only what is in them.
    """
    if given is None:
        raise InputError(
            f"the model puts {puts[0].name!r} into a container of its arguments, and these inputs "
            "are in none; call it with the arguments themselves"
        )
    rest = iter(tensors)
    for put in puts:
        put.place(given, rest)


def _said(keys: Keys) -> str:
    name, *rest = keys
    return repr(str(name)) + "".join(f"[{key!r}]" for key in rest)
