"""A ring of memory on a device through which weights pass, one stage after the other.

With a GPU the copies run on a stream of their own.  A slot is written when the stage that read it
has been computed, and read when it has been written: both are waited for on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.codegen.placement import Placement

PLAIN = (Tensor, nn.Parameter)
ALIGNED = 256
"""What addresses of weights are multiples of."""


@dataclass(frozen=True)
class Copies:
    """Weights of one stage on their way.

    Attributes:
        tensors: the weights on the device.
        done: an event of a GPU after which they are there.
    """

    tensors: tuple[Tensor, ...]
    done: Any = None


class Ring:
    """The slots of one call.

    Args:
        placement: the device.
        size: bytes of a slot.
    """

    def __init__(self, placement: Placement, size: int) -> None:
        self.device, self.held = placement.device, placement.held
        count = placement.offload.prefetch + 1
        self._slots = [
            torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(count)
        ]
        if self.device.type == "cuda":  # what fails between may leave a copy under way
            for slot in self._slots:
                slot.record_stream(_stream(self.device))
        self._next = self._unpinned = 0
        self.held.peak = max(self.held.peak, size * count)

    def start(self, weights: Sequence[Tensor]) -> Copies:
        """Begin to copy the weights of a stage into the slot that was free for longest."""
        slot = self._slots[self._next % len(self._slots)]
        self._next += 1
        self.held.copied += sum(map(_bytes, weights))
        if self.device.type != "cuda":
            return Copies(self._filled(slot, weights))
        stream, now = _stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            copies = self._filled(slot, [self._pinned(x) for x in weights])
            return Copies(copies, stream.record_event())

    def take(self, copies: Copies) -> tuple[Tensor, ...]:
        """The weights of a stage, which what is computed from now on may read."""
        if copies.done is not None:
            torch.cuda.current_stream(self.device).wait_event(copies.done)
        return copies.tensors

    def own(self, results: Any) -> Any:
        """The results of a stage in memory of their own, where they lie in that of its weights."""
        if isinstance(results, Tensor):
            storage = results.untyped_storage()._cdata
            inside = any(storage == slot.untyped_storage()._cdata for slot in self._slots)
            return results.clone() if inside else results
        return type(results)(map(self.own, results))

    def _pinned(self, x: Tensor) -> Tensor:
        """A weight in memory that a GPU copies from by itself; it is moved there once."""
        pinned = x.is_pinned()
        if not pinned and self.held.pins and type(x) in PLAIN and not x.is_inference():
            try:
                with torch.inference_mode(False):
                    x.data = x.data.pin_memory()
                pinned = True
            except RuntimeError:
                self.held.pins = False
        self._unpinned += 0 if pinned else _bytes(x)
        self.held.unpinned = max(self.held.unpinned, self._unpinned)
        return x

    def _filled(self, slot: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        filled, place = [], 0
        for x in weights:
            if type(x) not in PLAIN:  # of packed numbers: it moves itself
                filled.append(x.detach().to(self.device, non_blocking=True))
                continue
            piece = slot[place : place + x.numel() * x.element_size()]
            place += aligned(len(piece))
            filled.append(piece.view(x.dtype).view(x.shape))
            filled[-1].copy_(x.detach(), non_blocking=True)
        return tuple(filled)


def aligned(size: int) -> int:
    """Bytes that something of some size takes in a slot."""
    return -(-size // ALIGNED) * ALIGNED


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


@cache
def _stream(device: torch.device) -> Any:
    """The stream on which weights are copied to a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
