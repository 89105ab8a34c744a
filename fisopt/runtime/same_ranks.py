"""Ranks that share a clip run the same thing: it is compared, and a rank that is lost is named."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fisopt.errors import RankError
from fisopt.passes.sharding.group import check_backend, process_group
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant

SAMPLE = 16
"""Entries of each weight that are compared."""
_LOST = ("gloo", "nccl", "connection", "process group", "timed out", "timeout", "peer")


class SameRanks:
    """Compares what the ranks of a group run, once a clip for every guidance branch.

    Args:
        model: the model.
        clip: returns something that is one and the same object within one generation, None where
            nothing tells.
        branch: returns the name of the guidance branch that is being run.
        kernels: how it is run, in words.
    """

    def __init__(
        self, model: nn.Module, clip: Callable[[], Any], branch: Callable[[], str], kernels: str
    ) -> None:
        self._model, self._clip, self._branch, self._kernels = model, clip, branch, kernels
        self._local = threading.local()

    def check(self, program: Program, inputs: Inputs, variant: Variant) -> None:
        """Compare a call with those of the other ranks.

        Raises:
            RankError: a rank runs something else, or is gone.
        """
        for share in program.mesh:
            if share.of != "branches":
                self.check_among(share, inputs, variant)

    def check_among(self, share: Share, inputs: Inputs, variant: Variant) -> None:
        """Compare a call with those of some other ranks.

        Raises:
            RankError: a rank runs something else, or is gone; or their process group has no backend
                for the device.
        """
        if not _several(share.group):
            return
        if not self._is_new((share, self._branch(), variant, inputs.key())):
            return
        check_backend(share.group, next(x.device for _, x in inputs.tensors()))
        facts = {
            "passes": str([p for p in variant.passes if p.stage not in ("branches", "ranks")]),
            "kernels": self._kernels,
            "weights": self._weights,
            **{f"input {inputs.names[i]!r}": _digest(x) for i, x in inputs.tensors()},
        }
        with together(share.count):
            compare(facts, share.group)

    def _is_new(self, call: Hashable) -> bool:
        """Whether such a call is the first of its clip; of all, where nothing tells clips apart."""
        local, clip = self._local, self._clip()
        if not hasattr(local, "seen") or (clip is not None and clip is not local.clip):
            local.clip, local.seen = clip, set()
        new = call not in local.seen
        local.seen.add(call)
        return new

    @cached_property
    def _weights(self) -> str:
        """A digest of some entries of every weight that is a plain tensor."""
        found = 0
        for name, weight in self._model.named_parameters():
            if type(weight) is nn.Parameter and weight.device.type != "meta":
                entries = weight.detach().flatten()
                step = max(1, entries.numel() // SAMPLE)
                found = zlib.crc32(f"{name} {_digest(entries[::step][:SAMPLE])}".encode(), found)
        return f"{found:08x}"


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


def _several(group: str) -> bool:
    """Whether ranks are processes, and not simulated."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    known = process_group(group)
    return distributed.get_backend(known) != "fake"


def _digest(x: Tensor) -> str:
    """A digest of all values."""
    plain = x.detach()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    values = torch.empty(plain.numel(), dtype=plain.dtype).copy_(plain.reshape(-1))
    return f"{zlib.crc32(values.view(torch.uint8).numpy().tobytes()):08x} {list(x.shape)}"
