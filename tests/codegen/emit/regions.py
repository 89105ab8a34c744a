"""The regions of lowered models, and operands for them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, fx

from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Config, Kernel, emit
from fisopt.codegen.emit.region import Region, find_regions
from fisopt.codegen.lower import lower
from fisopt.rewrite.program import Program


def emitted(program: Program) -> dict[str, tuple[Kernel, Region]]:
    """Every kernel of a lowered Program by name."""
    found: dict[str, tuple[Kernel, Region]] = {}
    for _, stage in lower(program).named_children():
        for region, kernel in taken(stage) if isinstance(stage, fx.GraphModule) else ():
            found.setdefault(kernel.name, (kernel, region))
    return found


def taken(stage: fx.GraphModule) -> list[tuple[Region, Kernel]]:
    """The regions of a stage that are emitted, with their kernels."""
    found = []
    for region in find_regions(stage):
        with suppress(RefusalError):
            found.append((region, emit(region)))
    return found


def operands(kernel: Kernel, region: Region, dtype: torch.dtype) -> list[Tensor]:
    """Random operands, strided in different ways: dense, permuted, every other element."""
    sizes = dict(kernel.index_sizes)
    made = []
    holders = [n for n in region.graph.graph.nodes if n.op == "placeholder"]
    for i, node in enumerate(holders):
        like = node.meta["val"]
        if like.is_floating_point():
            x = torch.randn(like.shape).to(dtype)
        elif like.dtype == torch.bool:
            x = torch.rand(like.shape) < 0.5
        else:
            x = torch.randint(0, sizes.get(i, 2), like.shape)
        made.append(strided(x, i % 3))
    return made


def strided(x: Tensor, way: int) -> Tensor:
    """The same values in another place of memory."""
    if way == 0 or x.ndim == 0:
        return x.contiguous()
    if way == 1:
        order = list(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def as_dtype(kernel: Kernel, dtype: torch.dtype) -> Kernel:
    """The kernel with results of another float type."""
    return replace(
        kernel,
        results=tuple((s, dtype if d.is_floating_point else d) for s, d in kernel.results),
    )


def one_program(kernel: Kernel) -> Config:
    """All rows in one program: the interpreter's time is that of programs, not of elements."""
    return replace(kernel.configs()[0], block_rows=1 << (kernel.rows - 1).bit_length())


def reference(kernel: Kernel, region: Region, values: list[Tensor]) -> list[Tensor]:
    """What the kernel should write: the region's results eagerly, in float32, equal ones once."""
    wide = [x.float() if x.is_floating_point() else x for x in values]
    with torch.no_grad():
        results = region.graph(*wide)
    for result, i in zip(results, kernel.gives, strict=True):
        assert torch.equal(result, results[kernel.gives.index(i)])
    return [results[kernel.gives.index(i)] for i in range(len(kernel.results))]
