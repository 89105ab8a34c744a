"""Agreement: what ranks must have in common is compared, and what differs is named."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fisopt.errors import RankError
from fisopt.passes.sharding.group import process_group

SAMPLE = 16
"""Entries of each weight that are compared."""
_LOST = ("gloo", "nccl", "connection", "process group", "timed out", "timeout", "peer")


def compare(facts: Mapping[str, str], group: str) -> None:
    """Insist on the same facts on all ranks of a group.

    Raises:
        RankError: two ranks differ; on every rank of the group.
    """
    known = process_group(group)
    every: list[Any] = [None] * distributed.get_world_size(known)
    distributed.all_gather_object(every, dict(facts), group=known)
    for rank, other in enumerate(every):
        for name in (n for n in {**every[0], **other} if every[0].get(n) != other.get(n)):
            raise RankError(
                f"ranks that share a clip do not run the same: {name} is {other.get(name)} on rank "
                f"{rank} and {every[0].get(name)} on rank 0; give all of them the same passes, "
                "weights, prompts and seeds"
            )


def are_processes(group: str) -> bool:
    """Whether the ranks of a group are processes, and not simulated."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    known = process_group(group)
    return distributed.get_backend(known) != "fake"


def sampled_weights(model: nn.Module) -> str:
    """A digest of some entries of every weight that is a plain tensor."""
    found = 0
    for name, weight in model.named_parameters():
        if type(weight) is nn.Parameter and weight.device.type != "meta":
            entries = weight.detach().flatten()
            step = max(1, entries.numel() // SAMPLE)
            found = zlib.crc32(f"{name} {digest(entries[::step][:SAMPLE])}".encode(), found)
    return f"{found:08x}"


def digest(x: Tensor) -> str:
    """A digest of all values."""
    plain = x.detach()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    values = torch.empty(plain.numel(), dtype=plain.dtype).copy_(plain.reshape(-1))
    return f"{zlib.crc32(values.view(torch.uint8).numpy().tobytes()):08x} {list(x.shape)}"


@contextmanager
def together(count: int) -> Iterator[None]:
    """Run what some ranks run together; one that is gone or late is an error that says so.

    Raises:
        RankError: a collective of the group failed.
    """
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:
        if count == 1 or not any(word in str(error).lower() for word in _LOST):
            raise
        rank = distributed.get_rank() if distributed.is_initialized() else "?"
        raise RankError(
            f"rank {rank} waited for the other ranks of its {count} in vain: one of them has "
            f"ended, or did not answer within the timeout of the process group; what it said comes "
            f"first in the log. All ranks have to be started again ({error})"
        ) from error
