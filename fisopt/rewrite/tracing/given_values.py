"""Values that follow from a call's arguments alone, such as how long a mask says that a text is.

The tensors of a trial are fake and have none.  Inside `given_values`, those that are made of
arguments and shapes, and of no weight, are computed for real too.  Where a model reads one, or
makes a result that is as large as one says, it gets what its call would have given it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

LARGEST = 2**22
"""Entries of the largest tensor whose values are followed."""
_UNKNOWN = object()


class given_values(TorchDispatchMode):  # type: ignore[no-untyped-call]  # noqa: N801
    """Inside, a model on fake tensors may read what follows from the arguments of its call.

    Args:
        mode: of the fake tensors.
        pairs: each argument's fake, and the argument.
    """

    supports_higher_order_operators = True

    def __init__(
        self, mode: FakeTensorMode, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self._known: Any = WeakTensorKeyDictionary()
        with unset_fake_temporarily():
            for fake, given in pairs:
                if not given.is_meta and given.numel() <= LARGEST:
                    self._known[fake] = given.detach().clone()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], self._places(args[1]))
        if torch.Tag.data_dependent_output in func.tags or _is_sized(func):
            made = self._real(func, args, kwargs)
            if made is not _UNKNOWN:
                return pytree.tree_map_only(torch.Tensor, self._faked, made)
        result = func(*args, **kwargs)
        if not _is_large(result):
            made = self._real(func, args, kwargs)
            if made is not _UNKNOWN:
                self._pair(result, made)
                return result
        if func._schema.is_mutable:
            self._forget(result)
        return result

    def _real(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator makes of values, where all of its operands have some."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        values = [self._value(x, func) if isinstance(x, torch.Tensor) else x for x in leaves]
        if any(x is _UNKNOWN for x in values) or torch.Tag.nondeterministic_seeded in func.tags:
            return _UNKNOWN
        given, named = pytree.tree_unflatten(values, structure)
        with unset_fake_temporarily():
            made = func(*given, **named)
        tensors = [x for x in pytree.tree_leaves(made) if isinstance(x, torch.Tensor)]
        return _UNKNOWN if any(x.is_meta for x in tensors) else made

    def _value(self, tensor: torch.Tensor, func: Any) -> Any:
        """The values of a tensor; of what is not fake, such as a constant, they are its own."""
        if isinstance(tensor, FakeTensor):
            return self._known.get(tensor, _UNKNOWN)
        return _UNKNOWN if tensor.is_meta or func._schema.is_mutable else tensor

    def _pair(self, fakes: Any, made: Any) -> None:
        for fake, value in zip(pytree.tree_leaves(fakes), pytree.tree_leaves(made), strict=True):
            if isinstance(fake, FakeTensor):
                self._known[fake] = value

    def _faked(self, value: torch.Tensor) -> torch.Tensor:
        fake = self._mode.from_tensor(value)
        self._known[fake] = value
        return fake

    def _places(self, indices: Any) -> list[Any]:
        """Indices with places in the stead of masks whose values are known."""
        found: list[Any] = []
        for index in indices:
            is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            mask: Any = self._known.get(index, _UNKNOWN) if is_mask else _UNKNOWN
            if mask is _UNKNOWN:
                found.append(index)
                continue
            with unset_fake_temporarily():
                places = mask.nonzero().unbind(1)
            found += map(self._faked, places)
        return found

    def _forget(self, written: Any) -> None:
        """What looks at the memory of something that was written is not known."""
        memory = {_memory(x) for x in pytree.tree_leaves(written) if isinstance(x, torch.Tensor)}
        for tensor in [x for x in self._known if _memory(x) in memory]:
            del self._known[tensor]


def _is_sized(func: Any) -> bool:
    """Whether values say how large an operator's result is."""
    return torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor


def _is_large(result: Any) -> bool:
    return any(
        isinstance(x, torch.Tensor) and x.numel() > LARGEST for x in pytree.tree_leaves(result)
    )


def _memory(tensor: torch.Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory
