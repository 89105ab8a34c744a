"""Numbers that a model puts into a tensor and takes out again: tracing knows them all along.

Tracing sees ``torch.tensor(x.shape).prod().item()`` as a value that depends on data.  Inside
`shape_numbers` such tensors are followed as plain numbers too, and reading one gives these.  So are
positions: whole numbers among the inputs, which the graph is specialised to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

T = torch.Tensor
_MADE = {torch.tensor, torch.as_tensor}
_SAME = {T.long, T.int, T.cpu, T.to, T.clone, T.detach, T.contiguous, torch.clone}
_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    T.__add__: np.add,
    T.__radd__: np.add,
    T.add: np.add,
    torch.add: np.add,
    T.__sub__: np.subtract,
    T.sub: np.subtract,
    torch.sub: np.subtract,
    T.__mul__: np.multiply,
    T.__rmul__: np.multiply,
    T.mul: np.multiply,
    torch.mul: np.multiply,
    T.__floordiv__: np.floor_divide,
    T.floor_divide: np.floor_divide,
    torch.floor_divide: np.floor_divide,
    T.__getitem__: lambda a, index: a[index],
    torch.stack: lambda parts, dim=0: np.stack(parts, dim),
    torch.cat: lambda parts, dim=0: np.concatenate(parts, dim),
    T.prod: lambda a: a.prod(),
    torch.prod: lambda a: a.prod(),
    T.sum: lambda a: a.sum(),
    torch.sum: lambda a: a.sum(),
    T.max: lambda a: a.max(),
    torch.max: lambda a: a.max(),
    T.min: lambda a: a.min(),
    torch.min: lambda a: a.min(),
}
_COMPARED: dict[Any, Callable[..., Any]] = {
    T.eq: np.equal,
    T.__eq__: np.equal,
    T.ne: np.not_equal,
    T.__ne__: np.not_equal,
    T.lt: np.less,
    T.__lt__: np.less,
    T.le: np.less_equal,
    T.__le__: np.less_equal,
    T.gt: np.greater,
    T.__gt__: np.greater,
    T.ge: np.greater_equal,
    T.__ge__: np.greater_equal,
}
_WHOLE = (torch.int64, torch.int32, torch.bool)
_PARTS = {T.__iter__, T.unbind, torch.unbind}
_READ: dict[Any, Callable[[Any], Any]] = {
    T.item: lambda a: a.item(),
    T.tolist: lambda a: a.tolist(),
    T.__int__: lambda a: int(a.item()),  # Python wants a plain int here: the size is baked in
    T.__index__: lambda a: int(a.item()),
    T.__bool__: lambda a: bool(a.item()),
}


class shape_numbers(TorchFunctionMode):  # noqa: N801  # a context manager, as torch.no_grad is
    """Inside, whole numbers that were put into a tensor are read from it without a look at it.

    Args:
        positions: tensors of one entry, and what they hold.
    """

    def __init__(self, positions: Iterable[tuple[torch.Tensor, int]] = ()) -> None:
        super().__init__()
        self._known: dict[int, tuple[torch.Tensor, Any]] = {}
        self._kin: dict[int, tuple[torch.Tensor, frozenset[int]]] = {}
        for tensor, number in positions:
            self._know(tensor, np.full(tuple(tensor.shape), number, object))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # the branches of torch.cond, which are refused
            return func(*args, **kwargs)
        if func in _READ and (known := self._of(args[0])) is not None:
            return _READ[func](known)
        if _writes(func) or "out" in kwargs:
            self._forget((args[:1], kwargs.get("out")))
        result = func(*args, **kwargs)
        self._follow((args, kwargs), result)
        known = self._of(args[0]) if func in _PARTS and args[1:] in ((), (0,)) else None
        if known is not None and not kwargs:
            parts = list(result)
            self._follow(args, parts)
            for part, number in zip(parts, known, strict=True):
                self._know(part, np.asarray(number, object))
            return iter(parts) if func is T.__iter__ else tuple(parts)
        if isinstance(result, torch.Tensor) and result.dtype in _WHOLE:
            numbers = self._numbers(func, args, kwargs)
            if numbers is not None and numbers.shape == tuple(result.shape):
                self._know(result, numbers)
        return result

    def _follow(self, operands: Any, result: Any) -> None:
        """What is made of something that is known may look at its memory."""
        taken = [x for x in pytree.tree_leaves(operands) if isinstance(x, torch.Tensor)]
        if kin := frozenset[int]().union(*map(self._kin_of, taken)):
            for made in pytree.tree_leaves(result):
                if isinstance(made, torch.Tensor):
                    self._kin[id(made)] = (made, kin | self._kin_of(made))

    def _kin_of(self, value: torch.Tensor) -> frozenset[int]:
        found = self._kin.get(id(value))
        return frozenset() if found is None else found[1]

    def _forget(self, written: Any) -> None:
        """What looks at the same memory as something that is written is not known."""
        taken = [x for x in pytree.tree_leaves(written) if isinstance(x, torch.Tensor)]
        kin = frozenset[int]().union(*map(self._kin_of, taken))
        for known in [i for i in self._known if kin & self._kin_of(self._known[i][0])]:
            del self._known[known]

    def _know(self, tensor: torch.Tensor, numbers: Any) -> None:
        self._known[id(tensor)] = (tensor, numbers)  # held, so that its id stays its own
        self._kin[id(tensor)] = (tensor, self._kin_of(tensor) | {id(tensor)})

    def _of(self, value: Any) -> Any:
        """The numbers that a tensor holds, None if they are not known."""
        found = self._known.get(id(value))
        return None if found is None else found[1]

    def _numbers(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The numbers of a result, None if they are not known or are no whole numbers."""
        if func in _MADE:
            return self._made(args[0])
        if func in _SAME:
            return self._of(args[0])
        rule = _ARITHMETIC.get(func) or _COMPARED.get(func)
        if rule is None:
            return None
        leaves, structure = pytree.tree_flatten((args, kwargs))
        numbers = [self._of(x) if isinstance(x, torch.Tensor) else x for x in leaves]
        if any(n is None for n, x in zip(numbers, leaves, strict=True) if x is not None):
            return None
        given, named = pytree.tree_unflatten(numbers, structure)
        try:
            return np.asarray(rule(*given, **named), object)
        except (TypeError, ValueError, IndexError):
            return None

    def _made(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return self._of(data)
        numbers = np.array(data, object)
        whole = all(type(x) in (int, torch.SymInt) for x in numbers.flat)
        return numbers if numbers.size and whole else None


def _writes(func: Any) -> bool:
    """Whether a function writes into one of its tensors."""
    name = str(getattr(func, "__name__", ""))
    inplace = name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
    return inplace or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
