"""Inner tensors: what a weight of a tensor class, such as a quantised one, is made of.

A graph reads the plain tensors that such a weight flattens to, each by its path in the weight:
``blocks.0.ffn.weight.qdata``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fisopt.rewrite.tools.fsdp import is_sharded
from fisopt.rewrite.tools.tool import Place

_PLAIN = (str, int, float, tuple)


class _Inner(Mapping[str, Any]):
    """One inner tensor of the weight that a module holds under a name, whichever it is then."""

    def __init__(self, held: Mapping[str, Any], name: str, path: str) -> None:
        self._held, self._name, self._read = held, name, operator.attrgetter(path)

    def __getitem__(self, _: str) -> Any:
        return self._read(self._held[self._name])

    def __iter__(self) -> Iterator[str]:
        return iter((self._name,))

    def __len__(self) -> int:
        return 1


def inner_place(module: nn.Module, name: str, path: str) -> Place | None:
    """Where a module holds an inner tensor.

    Args:
        module: the module.
        name: of the weight.
        path: of the inner tensor in the weight.
    """
    for held in (module._parameters, module._buffers):
        weight = held.get(name)
        if _is_made_of_others(weight) and path in dict(_leaves(weight)):
            return _Inner(held, name, path), path
    return None


def with_inner(weight: Any, made: Callable[[str, torch.Tensor], torch.Tensor], path: str) -> Any:
    """A weight of the same class with other inner tensors; of a plain one what is made of it.

    Args:
        weight: the weight.
        made: gives the tensor in the place of another, from its path.
        path: of the weight.
    """
    if not _is_made_of_others(weight):
        return made(path, weight)
    names, context = weight.__tensor_flatten__()
    inner = {name: with_inner(getattr(weight, name), made, f"{path}.{name}") for name in names}
    unflatten: Any = type(weight).__tensor_unflatten__
    return unflatten(inner, context, weight.size(), weight.stride())


def faked(mode: FakeTensorMode, weight: torch.Tensor) -> Any:
    """A fake of a weight in a mode; one of a tensor class has fakes of its inner tensors.

    A mode refers weakly to what it has faked, and torch moves no weight of a tensor class that
    anything refers to so.
    """
    if is_sharded(weight):  # traced whole
        with mode:
            return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    return with_inner(weight, lambda _, inner: mode.from_tensor(inner), "")


def inner_form(weight: Any) -> tuple[Any, ...]:
    """What a graph is captured for of the inner tensors of a weight, and of what is beside them."""
    if type(weight) in (torch.Tensor, nn.Parameter):
        return ()
    if is_sharded(weight):
        return repr(weight.placements), repr(weight.device_mesh)
    if not _is_made_of_others(weight):
        return tuple((name, x) for name, x in vars(weight).items() if isinstance(x, _PLAIN))
    tensors = tuple((path, x.shape, x.dtype, x.device) for path, x in _leaves(weight))
    return tensors, repr(weight.__tensor_flatten__()[1])


def stored(weight: torch.Tensor) -> int:
    """Bytes that a weight takes, whatever type it says that it is of."""
    if is_sharded(weight):
        weight = cast("Any", weight).to_local()
    held = [x for _, x in _leaves(weight)] if _is_made_of_others(weight) else [weight]
    return sum(x.numel() * x.element_size() for x in held)


def _is_made_of_others(weight: Any) -> bool:
    """Whether a graph reads the inner tensors of a weight; one that ranks divide is read whole."""
    return is_traceable_wrapper_subclass(weight) and not is_sharded(weight)


def _leaves(weight: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors of a weight, by their paths in it."""
    for attribute in weight.__tensor_flatten__()[0]:
        inner = getattr(weight, attribute)
        if _is_made_of_others(inner):
            yield from ((f"{attribute}.{path}", x) for path, x in _leaves(inner))
        else:
            yield attribute, inner
