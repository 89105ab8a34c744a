"""Modes of the process that a captured graph bakes in: automatic casts and defaults of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def ambient(inputs: Iterable[torch.Tensor]) -> tuple[Any, ...]:
    """The modes in which a call with some inputs is made, as part of the key of its graph.

    They are the dtypes that autocast chooses on the CPU and where the inputs are, the default
    dtype and device of new tensors, whether only deterministic algorithms may run, and how many
    threads share the work.
    """
    casts = ((kind, torch.get_autocast_dtype(kind)) for kind in _casting(inputs))
    compiled_for = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    return (torch.get_default_dtype(), torch.get_default_device(), *compiled_for, *casts)


@contextmanager
def without_casts(inputs: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, autocast is off: the casts of the call are in its graph already."""
    with ExitStack() as stack:
        for kind in _casting(inputs):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _casting(inputs: Iterable[torch.Tensor]) -> list[str]:
    """The kinds of device for which autocast is on."""
    kinds = {"cpu", *(x.device.type for x in inputs)}
    return sorted(
        kind
        for kind in kinds
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    )
