"""Hand-written Triton kernels attached to their operators, for CUDA tensors.

The module of `fisopt.codegen.kernels` that has an operator's name is its kernel.  It, and Triton
with it, is imported when the operator first meets a CUDA tensor.  An operator whose kernel refuses
its arguments runs in plain torch there, with a warning.  Kernel and plain torch are timed at the
first call of a shape, see `fisopt.codegen.choose`, and the slower one is not used again.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch

from fisopt.codegen.choose import Candidates, decide_operator, operator_key
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.operator import Operator, operators

_FOLDER = "fisopt.codegen.kernels"
KERNELS: dict[Any, Callable[..., Any]] = {}
"""The operators that have a kernel, and what runs in plain torch where the kernel refuses."""
_CHOSEN: dict[tuple[torch.device, str], bool] = {}


def kernel_of(op: Any) -> ModuleType:
    """The module of an operator's kernel, imported now.

    Raises:
        LoweringError: Triton is not installed.
    """
    name = str(op).split(".")[1]
    try:
        return importlib.import_module(f"{_FOLDER}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise LoweringError(
            f"fisopt::{name} on a GPU needs Triton, which is not installed; "
            "pip install 'fisopt[triton]'"
        ) from error


def refusal(op: Any, args: tuple[Any, ...]) -> str | None:
    """Why the kernel of an operator does not take some arguments, None if it does.

    Arguments may be fake tensors.
    """
    try:
        kernel_of(op).supports(*args)
    except LoweringError as error:
        return str(error)
    return None


def run(op: Any, *args: Any) -> Any:
    """Run an operator on its operands' GPU: by its kernel, or in plain torch where that refuses.

    The first time that it runs in plain torch for some reason, a warning says so.

    Raises:
        LoweringError: Triton is not installed.
    """
    kernel = kernel_of(op)
    if (why := refusal(op, args)) is not None:
        _warn(f"{why}; it runs in plain torch")
        return KERNELS[op](*args)
    with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
        chosen = kernel.launch if _is_kernel_chosen(op, args) else KERNELS[op]
        return chosen(*args)


def _is_kernel_chosen(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether the kernel is the faster one for arguments of these shapes, timed if need be."""
    device = args[0].device
    if device.type != "cuda":
        return True
    key = (device, operator_key(op, args))
    if key not in _CHOSEN:
        if torch.cuda.is_current_stream_capturing():
            return True
        _CHOSEN[key] = decide_operator(op, args, device, _candidates(op, args)).chosen == "kernel"
    return _CHOSEN[key]


def _candidates(op: Any, args: tuple[Any, ...]) -> Callable[[], Candidates]:
    """Kernel and plain torch; of several results the last is compared: ties make indices vary."""

    def last(run: Callable[..., Any]) -> Callable[[], Sequence[torch.Tensor]]:
        def call() -> Sequence[torch.Tensor]:
            results = run(*args)
            return [results if isinstance(results, torch.Tensor) else results[-1]]

        return call

    return lambda: {"kernel": last(kernel_of(op).launch), "reference": last(KERNELS[op])}


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _attach(made: Operator) -> None:
    KERNELS[made.target] = made.implementation

    @made.kernel("cuda")
    def launch(*args: Any) -> Any:
        return run(made.target, *args)


for _made in operators():
    if _made.target.namespace == "fisopt" and importlib.util.find_spec(f"{_FOLDER}.{_made.name}"):
        _attach(_made)
