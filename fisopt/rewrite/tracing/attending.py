"""What the modules of a list do when a model runs: what they return, and whether they attend."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

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
        if func is nn.functional.scaled_dot_product_attention and self.running is not None:
            given = inspect.signature(_sdpa).bind_partial(*args[:2], **(kwargs or {})).arguments
            self.running.attends |= given["query"].shape[-2] == given["key"].shape[-2]
        return func(*args, **(kwargs or {}))


def _sdpa(query: Any, key: Any, **_: Any) -> None:
    """The arguments of torch's attention that are looked at."""
