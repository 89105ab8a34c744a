"""Packages of AOTInductor: compiled for the device of the weights, loadable from C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fisopt.codegen.compile import has_compiler
from fisopt.errors import ExportError

SUFFIX = ".pt2"


def write(program: ExportedProgram, path: Path) -> None:
    """Compile a program and write it as a package.

    Raises:
        ExportError: there is no C++ compiler, or compiling fails.
    """
    if not torch.cuda.is_available() and not has_compiler():
        raise ExportError(
            "format='aoti' compiles the model and found no C++ compiler with Python's headers; "
            "install them (gcc and python3-dev), or export format='pt2'"
        )
    from torch._inductor import aoti_compile_and_package  # seconds: not at import

    try:
        aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        raise ExportError(f"AOTInductor failed: {type(error).__name__}: {error}") from error


def load(path: Path) -> Any:
    """Load a package.

    Raises:
        ExportError: it is damaged, or was built for another machine.
    """
    from torch._inductor import aoti_load_package  # seconds: not at import

    try:
        return aoti_load_package(str(path))
    except Exception as error:
        raise ExportError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
