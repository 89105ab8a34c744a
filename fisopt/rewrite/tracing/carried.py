"""What a call leaves in the model and a later call reads: a graph, which is made of one, has not.

Tracing sees one call.  A model that keeps its keys on itself, or counts how many it has, runs
something else at the next.  So a model that has set something is run twice more, on what the calls
before have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Carried(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches calls of a model.

    Args:
        weights: its weights: what is written into them is in the graph.

    Attributes:
        read: whether a call has read what an earlier one has made of its inputs.
        ran: the operators of each call, with sizes and numbers.
    """

    supports_higher_order_operators = True

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read = False
        self.ran: list[list[Any]] = []
        self._weights = {id(x) for x in weights}
        self._made: dict[int, torch.Tensor] = {}
        self._earlier: dict[int, torch.Tensor] = {}

    def begin(self, leaves: Iterable[Any]) -> None:
        """A call begins, with these inputs."""
        given = {id(x): x for x in leaves if isinstance(x, torch.Tensor)}
        self._earlier |= self._made
        self._earlier = {i: x for i, x in self._earlier.items() if i not in given}
        self._made = given
        self.ran.append([])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = pytree.tree_leaves((args, kwargs))
        tensors = [x for x in taken if isinstance(x, torch.Tensor)]
        self.read |= any(id(x) in self._earlier for x in tensors)
        if any(id(x) in self._made for x in tensors):
            made = pytree.tree_leaves(result)
            self._made |= {
                id(x): x for x in made if isinstance(x, torch.Tensor) and id(x) not in self._weights
            }
        self.ran[-1].append((str(func), [_form(x) for x in taken]))
        return result


def carries(watch: Carried, run: Callable[[], object]) -> str:
    """Why a model's next call is not like this one, given what this one has left; "" if it is.

    Args:
        watch: sees the calls.
        run: runs the model, and puts nothing back.
    """
    try:
        for _ in range(3):
            run()
    except Exception as error:
        return f"a second call fails on what the first has left ({type(error).__name__})"
    if watch.read:
        return "a later call reads what an earlier one has made of its inputs"
    return "each call runs other operators" if watch.ran[1] != watch.ran[2] else ""


def _form(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value)
