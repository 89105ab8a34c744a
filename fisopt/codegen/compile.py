"""Compile: a Program as a fast callable, each distinct stage compiled once."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx

from fisopt.codegen.lower import lower
from fisopt.errors import LoweringError
from fisopt.rewrite.program import Program

Backend = Literal["inductor", "eager"]
BACKENDS: tuple[Backend, ...] = ("inductor", "eager")
Runnable = Callable[..., Sequence[Any]]


def compile_program(program: Program, backend: Backend) -> Runnable:
    """Return a callable from a Program's tensor inputs to its flat results.

    With ``inductor`` every distinct stage (head, each block shape, tail) is compiled once by
    torch.compile with ``fullgraph=True`` and static shapes; isomorphic blocks share the code.
    With ``eager`` the Program's own graph runs.
    """
    if backend == "eager":
        return program.graph_module.forward
    if not torch.cuda.is_available() and not has_compiler():
        raise LoweringError(
            "backend='inductor' needs a C++ compiler and Python's headers on a CPU and found "
            "none; install them (gcc and python3-dev) or pass backend='eager'"
        )
    module = lower(program)
    for name, callee in list(module.named_children()):
        if isinstance(callee, fx.GraphModule):
            setattr(module, name, torch.compile(callee, fullgraph=True, dynamic=False))
    return module


def has_compiler() -> bool:
    """Whether Inductor finds the C++ compiler and the Python headers that it needs on a CPU."""
    from torch._inductor import cpp_builder, exc  # over a second: not at import

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def distinct_stages(runnable: Runnable) -> int:
    """How many graphs a compiled Program consists of: the compiles it costs."""
    if not isinstance(runnable, fx.GraphModule):
        return 0
    return len({str(n.target) for n in runnable.graph.nodes if n.op == "call_module"})
