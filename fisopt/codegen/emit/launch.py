"""Running emitted kernels: the operator that stands for them in a graph, and its launcher."""

from __future__ import annotations

import importlib.util
import linecache
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fisopt.codegen.emit import cache as disk
from fisopt.codegen.emit.kernel import Config, Kernel
from fisopt.errors import LoweringError

_WIDE = 2**31
_KERNELS: dict[str, Kernel] = {}


def register(kernel: Kernel) -> None:
    """Make a kernel known to the operator by its name, which says what it is."""
    _KERNELS.setdefault(kernel.name, kernel)


def launch(
    kernel: Kernel, operands: Sequence[Tensor], config: Config | None = None
) -> list[Tensor]:
    """Run a kernel.

    Args:
        kernel: what to run.
        operands: tensors of its operands' shapes, strided in any way.
        config: how to cut it, None for its own choice.

    Returns:
        Its results, contiguous.

    Raises:
        LoweringError: the operands have other shapes, or Triton is not installed.
    """
    got = tuple(tuple(x.shape) for x in operands)
    if got != kernel.operands:
        raise LoweringError(f"{kernel.name}: operands of {kernel.operands} wanted, got {got}")
    config = config or kernel.configs()[0]
    results = [operands[0].new_empty(sizes, dtype=dtype) for sizes, dtype in kernel.results]
    spans = [
        1 + sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True)) for x in operands
    ]
    wide = max(*spans, *(y.numel() for y in results)) >= _WIDE
    args: list[Any] = []
    for i, x in enumerate(operands):
        args.append(x)
        args += [x.stride(d) for operand, d in kernel.strides if operand == i]
    grid = (-(-kernel.rows // config.block_rows), -(-kernel.columns // config.block_columns))
    run = function(kernel)[grid]
    with torch.cuda.device_of(operands[0]):  # type: ignore[no-untyped-call]
        run(
            *args,
            *results,
            WIDE=wide,
            BLOCK_ROWS=config.block_rows,
            BLOCK_COLUMNS=config.block_columns,
            num_warps=config.num_warps,
        )
    return results


def function(kernel: Kernel) -> Any:
    """The Triton function of a kernel; its source is also a file in the cache.

    Raises:
        LoweringError: Triton is not installed.
    """
    return _function(kernel.name, kernel.source)


@cache
def _function(name: str, source: str) -> Any:
    if importlib.util.find_spec("triton") is None:
        raise LoweringError(
            f"{name} is a Triton kernel and Triton is not installed; install fisopt[triton]"
        )
    path = str(disk.keep(f"emitted/{name}.py", source))
    # Triton asks for the source of a function: it is there even if the file could not be written
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    space = {"__name__": name, "__file__": path}
    exec(compile(source, path, "exec"), space)
    return space[name]


@torch.library.custom_op("fisopt::emitted", mutates_args=())
def emitted(kernel: str, config: Sequence[int], operands: Sequence[Tensor]) -> list[Tensor]:
    """Run the kernel of a name, cut as `Config` says."""
    return launch(_KERNELS[kernel], operands, Config(*config))


@emitted.register_fake
def _(kernel: str, config: Sequence[int], operands: Sequence[Tensor]) -> list[Tensor]:
    return [operands[0].new_empty(sizes, dtype=dtype) for sizes, dtype in _KERNELS[kernel].results]
