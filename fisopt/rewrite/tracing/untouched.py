"""Running a model to learn about it: afterwards it, and all that it reaches, is as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fisopt.concurrency import tracing
from fisopt.rewrite.tracing.held_state import HeldState


@contextmanager
def untouched(
    model: nn.Module, inputs: Iterable[Any], *, real: bool = False
) -> Iterator[HeldState]:
    """Inside, a model may be run, be traced or fail; on leaving, what that changed is put back.

    This is what hangs on its submodules (attributes, parameters, buffers, processors, dicts,
    lists) and on its inputs; what tracing left in its classes, source files and cached
    functions; and the states of random generators.  Other threads wait.

    Args:
        model: the model.
        inputs: leaves of the call's arguments.
        real: it runs on real tensors, so their values are put back too.

    Yields:
        What it holds, to put it back between two runs.
    """
    with tracing(), _random_states():
        held = HeldState(model, inputs)
        try:
            with _Writes(held.tensors) if real else nullcontext():
                yield held
        finally:
            held.restore()


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies a known tensor before the first operator that writes into it; on leaving, undoes."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Let compiled operators run inside: it changes no result."""
        return True

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage()._cdata for t in tensors if _is_plain(t)}
        self._copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operators that call functions have none
        for i, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[i] if i < len(args) else kwargs.get(argument.name)
                for tensor in written if isinstance(written, (list, tuple)) else [written]:
                    self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, written: Any) -> None:
        if isinstance(written, torch.Tensor) and _is_plain(written):
            storage = written.untyped_storage()
            if storage._cdata in self._known - self._copies.keys():
                copy = storage.clone()  # type: ignore[no-untyped-call]
                self._copies[storage._cdata] = (storage, copy)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for storage, copy in self._copies.values():
            storage.copy_(copy)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own that can be copied."""
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type != "meta"


@contextmanager
def _random_states() -> Iterator[None]:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
