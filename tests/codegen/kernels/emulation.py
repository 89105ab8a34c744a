"""Gluon kernels run line by line in plain torch, as far as those of fisopt need it.

Copies and matrix products are as late as the hardware may be, and what they write is NaN until it
is waited for; what is read too early, or overwritten while it is read, fails.
"""

from __future__ import annotations

import types
from collections import deque
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from fisopt.codegen.kernels.launching import Launch


class Registers(Tensor):
    """A tensor of a program; layouts mean nothing here."""

    type = types.SimpleNamespace(layout=None)  # type: ignore[assignment]


def held(x: Any) -> Registers:
    return torch.as_tensor(x).as_subclass(Registers)


@dataclass
class Pointer:
    storage: Tensor
    offset: Any = 0

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.storage.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.storage, self.offset + more)

    def __sub__(self, less: Any) -> Pointer:
        return Pointer(self.storage, self.offset - less)


@dataclass
class Barrier:
    """Counts its completed phases; holds what is still to arrive in the present one."""

    completed: int = 0
    expected: int = 0
    copies: list[tuple[Shared, Tensor]] = field(default_factory=list)


class Shared:
    """Shared memory; ``reads`` says how many products in flight read each buffer."""

    def __init__(self, data: Any, reads: dict[int, int]) -> None:
        self.data, self.reads = data, reads

    def index(self, i: Any) -> Any:
        part = self.data[int(i)]
        return part if isinstance(part, Barrier) else Shared(part, self.reads)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order), self.reads)

    def overwrite(self, value: Tensor) -> None:
        assert not self.reads.get(self.data.data_ptr(), 0), "overwritten while a product reads it"
        self.data.copy_(value)

    def load(self, layout: None) -> Registers:
        return held(self.data.clone())

    store = overwrite
    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)


@dataclass
class Product:
    """A product in flight: its value may be used once it was waited for."""

    value: Tensor
    operands: list[Shared]
    done: bool = False


@dataclass
class Descriptor:
    tensor: Tensor
    block: list[int]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def block_type(self) -> Any:
        return types.SimpleNamespace(nbytes=prod(self.block) * self.tensor.element_size())

    def read(self, place: list[Any]) -> Tensor:
        """One block, 0 outside of the tensor."""
        result = torch.zeros(self.block, dtype=self.dtype)
        parts = [
            slice(int(n), max(int(n), min(int(n) + size, end)))
            for n, size, end in zip(place, self.block, self.tensor.shape, strict=True)
        ]
        found = self.tensor[tuple(parts)]
        result[tuple(slice(0, size) for size in found.shape)] = found
        return result


class Machine:
    """One program: what the Gluon names of a kernel's module mean in it."""

    def __init__(self, place: tuple[int, ...]) -> None:
        self.place = place
        self.flying: deque[Product] = deque()
        self.reads: dict[int, int] = {}

    def allocate(self, dtype: torch.dtype, shape: list[int], layout: None) -> Any:
        if dtype == torch.int64:
            bars = [Barrier() for _ in range(shape[0])]
            return bars[0] if shape == [1] else Shared(bars, self.reads)
        return Shared(torch.full(shape, float("nan"), dtype=dtype), self.reads)

    def expect(self, bar: Barrier, nbytes: int) -> None:
        assert not bar.expected, "expected again before what was expected arrived"
        bar.expected = nbytes

    def copy(self, source: Descriptor, place: list[Any], bar: Barrier, buffer: Shared) -> None:
        buffer.overwrite(torch.full_like(buffer.data, float("nan")))
        bar.copies.append((buffer, source.read(place).view(buffer.shape)))

    def wait(self, bar: Barrier, phase: Any) -> None:
        if bar.completed % 2 == int(phase):
            arrived = sum(value.nbytes for _, value in bar.copies)
            assert arrived == bar.expected > 0, "waits for what never arrives"
            for buffer, value in bar.copies:
                buffer.overwrite(value)
            bar.completed, bar.expected, bar.copies = bar.completed + 1, 0, []

    def mma(self, a: Any, b: Shared, sums: Tensor, use_acc: bool = True, *, is_async: bool) -> Any:
        assert is_async
        assert isinstance(sums, Tensor)
        left = a.data if isinstance(a, Shared) else a
        value = left.float() @ b.data.float() + (sums if use_acc else 0.0)
        operands = [x for x in (a, b) if isinstance(x, Shared)]
        for x in operands:
            self.reads[x.data.data_ptr()] = self.reads.get(x.data.data_ptr(), 0) + 1
        self.flying.append(Product(held(value), operands))
        return self.flying[-1]

    def mma_wait(self, left: int, deps: tuple[Any, ...]) -> Any:
        while len(self.flying) > left:
            done = self.flying.popleft()
            done.done = True
            for x in done.operands:
                self.reads[x.data.data_ptr()] -= 1
        assert all(x.done for x in deps if isinstance(x, Product)), "used before it was waited for"
        values = tuple(x.value if isinstance(x, Product) else x for x in deps)
        return values[0] if len(values) == 1 else values

    @staticmethod
    def load(place: Pointer, mask: Any = True, other: Any = 0) -> Registers:
        wanted = torch.as_tensor(mask)
        offset = torch.where(wanted, torch.as_tensor(place.offset), 0)
        return held(torch.where(wanted, place.storage[offset], other))

    @staticmethod
    def store(place: Pointer, value: Tensor, mask: Tensor) -> None:
        place.storage[place.offset[mask].long()] = value[mask].to(place.storage.dtype)

    def names(self) -> dict[str, Any]:
        """Globals for the functions of a kernel's module."""
        nothing = lambda *_, **__: None  # noqa: E731
        layouts = "SliceLayout", "BlockedLayout", "NVMMADistributedLayout", "DotOperandLayout"
        language = types.SimpleNamespace(
            **dict.fromkeys(layouts, nothing),
            NVMMASharedLayout=types.SimpleNamespace(get_default_for=nothing),
            **{name: getattr(torch, name) for name in ("float32", "int64")},
            **{name: getattr(torch, name) for name in ("exp2", "log2", "sum", "zeros_like")},
            program_id=lambda axis: held(self.place[axis]),
            num_warps=lambda: 8,
            static_range=range,
            allocate_shared_memory=self.allocate,
            load=self.load,
            store=self.store,
            zeros=lambda shape, dtype, layout: held(torch.zeros(shape, dtype=dtype)),
            full=lambda shape, value, dtype, layout: held(torch.full(shape, value, dtype=dtype)),
            arange=lambda start, end, layout: held(torch.arange(start, end)),
            max=torch.amax,
            maximum=lambda a, b: torch.maximum(held(a), held(b)),
            where=lambda c, a, b: torch.where(c, a, b),
            convert_layout=lambda x, layout: x,
        )
        barriers = types.SimpleNamespace(
            init=nothing, expect=self.expect, wait=self.wait, MBarrierLayout=nothing
        )
        return {
            "gl": language,
            "mbarrier": barriers,
            "tma": types.SimpleNamespace(async_copy_global_to_shared=self.copy),
            "fence_async_shared": nothing,
            "warpgroup_mma": self.mma,
            "warpgroup_mma_wait": self.mma_wait,
        }


def flat(x: Any) -> Any:
    """An argument as a kernel sees it: memory by the element."""
    if isinstance(x, Tensor):
        return Pointer(
            torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        )
    if hasattr(x, "block_shape"):
        return Descriptor(x.base, x.block_shape)
    return x


def run(launch: Launch) -> None:
    """Run every program of a call."""
    module = vars(__import__(launch.kernel.fn.__module__, fromlist=["_"]))
    arguments = [flat(x) for x in launch.arguments]
    for place in product(*map(range, launch.grid)):
        names = dict(module) | Machine(place).names()
        for name, value in module.items():
            if hasattr(value, "fn"):
                names[name] = types.FunctionType(value.fn.__code__, names, name)
            elif hasattr(value, "value") and not callable(value):
                names[name] = value.value
        names[launch.kernel.fn.__name__](*arguments, **launch.constants, **launch.config.kwargs)
