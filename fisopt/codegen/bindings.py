"""Kernels attached to their operators, for CUDA tensors.

The module of `fisopt.codegen.kernels` that has an operator's name is its kernel; it may name
others in ``PREFERRED``, modules that have ``supports`` and ``launch`` too.  They, and Triton with
them, are imported when the operator first meets a CUDA tensor.  An operator whose kernels refuse
its arguments runs in plain torch there, with a warning.  Kernels and plain torch are timed at the
first call of a shape, see `fisopt.codegen.choose`, and the slower ones are not used again.
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
"""The operators that have a kernel, and what runs in plain torch where it refuses."""
_CHOSEN: dict[tuple[torch.device, str], str] = {}


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


def takers(op: Any, args: tuple[Any, ...]) -> tuple[dict[str, ModuleType], str]:
    """The kernels of an operator that take some arguments, and why the others do not.

    That which is preferred where nothing was measured comes first.  Arguments may be fake tensors.

    Raises:
        LoweringError: Triton is not installed.
    """
    kernel = kernel_of(op)
    took: dict[str, ModuleType] = {}
    refused = []
    for name, module in {**getattr(kernel, "PREFERRED", {}), "kernel": kernel}.items():
        try:
            module.supports(*args)
        except LoweringError as error:
            refused.append(str(error))
        else:
            took[name] = module
    return took, "; ".join(refused)


def run(op: Any, *args: Any) -> Any:
    """Run an operator on its operands' GPU: by a kernel, or in plain torch where all refuse.

    The first time that it runs in plain torch for some reason, a warning says so.

    Raises:
        LoweringError: Triton is not installed.
    """
    took, refused = takers(op, args)
    if not took:
        _warn(f"{refused}; it runs in plain torch")
        return KERNELS[op](*args)
    with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
        name = _chosen(op, args, took)
        return took[name].launch(*args) if name in took else KERNELS[op](*args)


def _chosen(op: Any, args: tuple[Any, ...], took: dict[str, ModuleType]) -> str:
    """What is fastest for arguments of these shapes, timed if need be."""
    device = args[0].device
    if device.type != "cuda":
        return next(iter(took))
    key = (device, operator_key(op, args, took))
    if key not in _CHOSEN:
        if torch.cuda.is_current_stream_capturing():
            return next(reversed(took))
        _CHOSEN[key] = decide_operator(op, args, device, took, _candidates(op, args, took)).chosen
    return _CHOSEN[key]


def _candidates(
    op: Any, args: tuple[Any, ...], took: dict[str, ModuleType]
) -> Callable[[], Candidates]:
    """Kernels and plain torch; of several results the last is compared: ties make indices vary."""

    def last(run: Callable[..., Any]) -> Callable[[], Sequence[torch.Tensor]]:
        def call() -> Sequence[torch.Tensor]:
            results = run(*args)
            return [results if isinstance(results, torch.Tensor) else results[-1]]

        return call

    kernels = {name: last(module.launch) for name, module in took.items()}
    return lambda: {**kernels, "reference": last(KERNELS[op])}


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
