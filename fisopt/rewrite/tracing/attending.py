"""What the modules of a list do when a model runs: what they return, and whether they attend."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass
class Seen:
    """What the modules of a list did.

    Attributes:
        shapes: of the tensors that they returned.
        attends: whether one of them had attention of a sequence with itself.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    attends: bool = False


@contextmanager
def seen(model: nn.Module, lists: Sequence[str]) -> Iterator[Mapping[str, Seen]]:
    """Inside, note what the modules of each list do; lists are paths of modules."""
    found = {name: Seen() for name in lists}
    with ExitStack() as stack, _Attentions() as attentions:
        for name, here in found.items():

            def enter(_: Any, __: Any, here: Seen = here) -> None:
                attentions.running = here

            def leave(_: Any, __: Any, out: Any, here: Seen = here) -> None:
                attentions.running = None
                leaves = pytree.tree_leaves(out)
                here.shapes.extend(tuple(x.shape) for x in leaves if isinstance(x, Tensor))

            for module in model.get_submodule(name).children():
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        yield found


class _Attentions(TorchFunctionMode):
    """Notes attention whose keys are as many as its queries for what is running."""

    running: Seen | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _ATTENTIONS and self.running is not None:
            given = inspect.signature(_sdpa).bind_partial(*args[:2], **(kwargs or {})).arguments
            dim = _ATTENTIONS[func]
            self.running.attends |= given["query"].shape[dim] == given["key"].shape[dim]
        elif func in _SOFTMAX and args and self.running is not None:
            self.running.attends |= args[0].ndim > 2 and args[0].shape[-1] == args[0].shape[-2]
        return func(*args, **(kwargs or {}))


_ATTENTIONS = {
    nn.functional.scaled_dot_product_attention: -2,
    nn.functional.multi_head_attention_forward: 0,
}
"""Attentions, and the dimension of their operands that is the sequence."""
_SOFTMAX = (torch.softmax, Tensor.softmax, nn.functional.softmax)
"""What makes weights of scores; those of a sequence with itself are square."""


def _sdpa(query: Any, key: Any, **_: Any) -> None:
    """The arguments of torch's attention that are looked at."""
