"""What runs around an optimised module: the hook of accelerate that moves a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fisopt.concurrency import running
from fisopt.errors import InputError

Run = Callable[[Sequence[Any], Mapping[str, Any]], Any]


def hooked(
    moved: nn.Module, model: nn.Module, run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a graph, inside the hook of accelerate that its model has.

    Args:
        moved: what the hook moves.
        model: the model.
        run: runs the graph.
        args: of the call.
        kwargs: of the call.

    Raises:
        InputError: the call is being traced.
    """
    if _traced():
        raise InputError(
            f"an optimised {type(model).__name__} cannot be traced: it chooses what runs at "
            "every call; fisopt.export writes what runs, and fisopt.load reads it"
        )
    hook = vars(model).get("_hf_hook")
    if hook is None:
        return run(args, kwargs)
    args, kwargs = hook.pre_forward(moved, *args, **kwargs)
    return hook.post_forward(moved, run(args, kwargs))


def _traced() -> bool:
    """Whether this call is being traced: the flag is of all threads, and another may hold it."""
    if torch._C._get_tracing_state() is not None:
        return True
    if not torch.compiler.is_exporting():
        return False
    with running():  # until no other thread traces
        return torch.compiler.is_exporting()
