"""torch.distributed.fsdp: models of which every rank holds a part of each weight.

`fully_shard` makes DTensors of weights, and hooks of its own gather them around each module.  A
graph is traced on whole weights without these hooks, and gathers itself where it runs.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fisopt.errors import InputError
from fisopt.rewrite.tools.tool import HOOKS, Tool


def is_sharded(x: Any) -> bool:
    """Whether a weight is one of which each rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


class Fsdp(Tool):
    """What fully_shard leaves in a model."""

    def check(self, model: nn.Module) -> None:
        """Refuse a model in which torch gathers around the whole call, or casts what it gathers."""
        for path, module in model.named_modules():
            if (state := _state(module)) is not None:
                _check(type(model).__name__, path, state)

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, no module gathers its weights."""
        divided = [m for m in model.modules() if _state(m) is not None]
        kept = [(m, {name: getattr(m, name) for name in HOOKS}) for m in divided]
        try:
            for module, hooks in kept:
                for name, held in hooks.items():
                    others = {k: hook for k, hook in held.items() if not gathers(hook)}
                    setattr(module, name, OrderedDict(others))
            yield
        finally:
            for module, hooks in kept:
                for name, held in hooks.items():
                    setattr(module, name, held)


def _state(module: nn.Module) -> Any:
    """What FSDP knows of a module, None if it has not divided its weights."""
    find = getattr(module, "_get_fsdp_state", None)
    return None if find is None else find()


def gathers(hook: Any) -> bool:
    """Whether a hook is one that gathers the weights of a module."""
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")


def _check(model: str, path: str, state: Any) -> None:
    if not path:
        raise InputError(
            f"{model} is divided by fully_shard as a whole, so that torch gathers weights around "
            "every call: leave the whole model out and divide its blocks alone, as "
            "SequenceParallel(shard_weights=True) does; the graph gathers them itself"
        )
    policy = getattr(state, "_mp_policy", None)
    casts = [getattr(policy, name, None) for name in ("param_dtype", "output_dtype")]
    if any(dtype is not None for dtype in casts):
        raise InputError(
            f"{model}: {path} is divided by fully_shard with {policy}, which casts at every call, "
            "and a graph of fisopt computes with weights as they are: convert the model by "
            ".to(dtype) before fully_shard, and leave out mp_policy"
        )


TOOL = Fsdp()
