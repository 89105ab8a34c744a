"""Functional tracing: what a model writes in place becomes new values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils import _pytree as pytree

from fisopt.rewrite.tracing.noops import FRESH
from fisopt.rewrite.tracing.recorder import check_no_functions

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
_Lift = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def functional(lift: _Lift) -> Iterator[None]:
    """Inside, models run on functional tensors: nothing changes in place, views know their base.

    Args:
        lift: gives a tensor of the model that is no weight, such as a table of positions, a place
            in the graph.
    """
    own: Any = FunctionalTensor.tolist
    FunctionalTensor.tolist = _tolist  # type: ignore[method-assign, assignment]
    try:
        with _Functional(lift):
            yield
    finally:
        FunctionalTensor.tolist = own  # type: ignore[method-assign]


def _tolist(tensor: torch.Tensor) -> Any:
    """Read numbers one by one, by functions that a mode of functions sees."""
    return [part.tolist() for part in tensor.unbind()] if tensor.ndim else tensor.item()


class _Functional(FunctionalTensorMode):  # type: ignore[no-untyped-call]
    """Torch's own functionalisation, in which operators made of others stay whole."""

    supports_higher_order_operators = True

    def __init__(self, lift: _Lift) -> None:
        super().__init__()
        self.export = self.pre_dispatch = True  # else composite ones are written out
        self._lift = lift

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            check_no_functions(func, args, kwargs)
            return func.python_key_table[FunctionalTensorMode](self, *args, **kwargs)
        if func not in FRESH:
            args, kwargs = pytree.tree_map_only(torch.Tensor, self._lifted, (args, kwargs))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _lifted(self, tensor: torch.Tensor) -> torch.Tensor:
        known = isinstance(tensor, (FunctionalTensor, FakeTensor))
        if known or type(tensor) not in _PLAIN:
            return tensor
        with self:
            return self._lift(tensor)
