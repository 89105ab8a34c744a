"""What the launchers share: one kernel call as data, operand checks, descriptors and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from fisopt.codegen.kernels.softmax import ADDED, SEEN, UNMASKED, product
from fisopt.errors import LoweringError

DTYPES = (torch.bfloat16, torch.float16)
WIDEST = 256


@dataclass(frozen=True)
class Launch:
    """One kernel call: run here, or compiled ahead of time for a device that is not here.

    Attributes:
        kernel: the jitted function.
        grid: how many programs.
        arguments: its runtime arguments, in order.
        constants: its compile-time arguments, save those of the config.
        config: the tile choice.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: triton.Config

    def run(self) -> None:
        """Start the kernel on the current device, on that of its tensors in the interpreter."""
        if 0 not in self.grid:
            self.kernel[self.grid](*self.arguments, **self.constants, **self.config.all_kwargs())


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return not isinstance(product, JITFunction)


def in_four(x: Tensor) -> Tensor:
    """The same memory as [batch, heads, tokens, width]."""
    return x[(None,) * (4 - x.ndim)]


def padded(width: int) -> int:
    """The block width that holds a head: a power of two."""
    return max(16, 1 << (width - 1).bit_length())


def architecture_of(x: Tensor) -> int:
    """The architecture of a tensor's device, 90 for sm_90; on a CPU that of the interpreter."""
    if not x.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def takes_descriptors(x: Tensor) -> bool:
    """Whether a tensor can be read through a descriptor, and its device has them."""
    if architecture_of(x) < 90:
        return False
    unit = 16 // x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(s % unit == 0 for s in x.stride()[:-1])
    return aligned and x.stride(-1) == 1 and 0 not in (*x.shape, *x.stride())


def refuse_operands(op: str, scale: float | None, **operands: Tensor) -> None:
    """Check what all attention kernels ask of queries, keys and values.

    Raises:
        LoweringError: a type, a width, a device or a scale that they do not take.
    """
    query = operands["query"]
    for name, x in operands.items():
        if x.dtype not in DTYPES or x.dtype != query.dtype:
            raise LoweringError(
                f"{op}: {name} is {x.dtype}, query is {query.dtype}; the kernel takes "
                "torch.bfloat16 or torch.float16, the same for query, key and value"
            )
        if x.shape[-1] % 16 or not 0 < x.shape[-1] <= WIDEST:
            raise LoweringError(
                f"{op}: {name} has {x.shape[-1]} features a head; the kernel takes multiples of "
                f"16 up to {WIDEST}"
            )
        if not 2 <= x.ndim <= 4:
            raise LoweringError(
                f"{op}: {name} has shape {list(x.shape)}; the kernel takes two to four dimensions"
            )
        refuse_device(op, name, x)
    if scale is not None and scale <= 0:
        raise LoweringError(f"{op}: scale is {scale}; the kernel takes positive scales")


def refuse_device(op: str, name: str, x: Tensor) -> None:
    """Check that kernels can run where a tensor is.

    Raises:
        LoweringError: they cannot.
    """
    if x.device.type == "cuda" and torch.version.hip is None:
        if architecture_of(x) >= 80:
            return
        got = f"an NVIDIA GPU of sm_{architecture_of(x)}"
    elif x.device.type == "cpu" and interpreted():
        return
    else:
        got = str(x.device)
    raise LoweringError(
        f"{op}: {name} is on {got}; the kernel takes NVIDIA GPUs from sm_80 on, "
        "and CPUs in Triton's interpreter (TRITON_INTERPRET=1)"
    )


def mask_arguments(mask: Tensor | None, shape: Sequence[int]) -> tuple[Any, tuple[int, ...]]:
    """How a mask is applied, and its strides over [batch, heads, queries, keys].

    A dimension along which it is the same has stride 0.
    """
    if mask is None:
        return UNMASKED, (0, 0, 0, 0)
    return (SEEN if mask.dtype == torch.bool else ADDED), mask.expand(*shape).stride()


def attention_constants(
    query: Tensor, value: Tensor, mode: Any, mask_strides: Sequence[int]
) -> dict[str, Any]:
    """What an attention kernel is compiled for, save its tile choice.

    Args:
        query: [..., D].
        value: [..., E].
        mode: how a mask is applied, see `mask_arguments`.
        mask_strides: its strides.
    """
    widths = {"D": query.shape[-1], "E": value.shape[-1]}
    return {
        **{f"BLOCK_{name}": padded(width) for name, width in widths.items()},
        **{f"EVEN_{name}": padded(width) == width for name, width in widths.items()},
        "MASK": mode.value,
        "MASK_ROWS": mask_strides[2] != 0,
        "WIDEN": interpreted(),
    }
