"""Inner tensors: what a weight of a tensor class, such as a quantised one, is made of.

torch.export reads such a weight as the plain tensors that it flattens to, and names each
``parametrizations.<weight>.original<i>``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fisopt.rewrite.tools.tool import Place

PARAMETRIZATIONS = "parametrizations"
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


def inner_place(module: nn.Module, name: str, leaf: str) -> Place | None:
    """Where a module holds an inner tensor.

    Args:
        module: the module.
        name: of the weight.
        leaf: of the inner tensor, as export numbers it.
    """
    number = re.fullmatch(r"original(\d+)", leaf)
    for held in (module._parameters, module._buffers):
        if number is not None and is_traceable_wrapper_subclass(weight := held.get(name)):
            paths = [path for path, _ in _leaves(weight)]
            if (index := int(number[1])) < len(paths):
                return _Inner(held, name, paths[index]), leaf
    return None


def inner_form(weight: Any) -> tuple[Any, ...]:
    """What a graph is captured for of the inner tensors of a weight, and of what is beside them."""
    if type(weight) in (torch.Tensor, nn.Parameter):
        return ()
    if not is_traceable_wrapper_subclass(weight):
        return tuple((name, x) for name, x in vars(weight).items() if isinstance(x, _PLAIN))
    tensors = tuple((path, x.shape, x.dtype, x.device) for path, x in _leaves(weight))
    return tensors, repr(weight.__tensor_flatten__()[1])


def _leaves(weight: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors of a weight, by their paths in it, in the order of export."""
    for attribute in weight.__tensor_flatten__()[0]:
        inner = getattr(weight, attribute)
        if is_traceable_wrapper_subclass(inner):
            yield from ((f"{attribute}.{path}", x) for path, x in _leaves(inner))
        else:
            yield attribute, inner
