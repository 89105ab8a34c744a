"""The files and packages that code comes from, as part of a key: contents, not dates."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
import types
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fisopt.codegen.cache_tag import cache_tag
from fisopt.rewrite.tracing.readiness import INSTALLED
from fisopt.runtime.disk.foreign import FOREIGN
from fisopt.runtime.disk.tokens import NotStableError

_STARTED = time.time()


def sources(names: Iterable[str]) -> list[str]:
    """What the files of Python modules hold, and those that they import, as lines of text.

    Files of installed packages count with the versions of these; what they import does not.

    Raises:
        NotStableError: a file was changed after this process began, so that what runs is not what
            it holds.
    """
    lines: dict[str, None] = {}
    todo, known = sorted(names), set[str]()
    while todo:
        name = todo.pop()
        held = sys.modules.get(name)
        if name in known or held is None:
            continue
        known.add(name)
        file = getattr(held, "__file__", None)
        if file is None:  # typed in: its functions count by their code
            continue
        lines[f"{name} {_of_file(Path(file))}"] = None
        if _is_installed(file):
            lines[f"{name} {_version(name.partition('.')[0])}"] = None
        else:
            todo += sorted(_imported(held) - known)
    return sorted(lines)


def _imported(held: types.ModuleType) -> set[str]:
    """The modules that a module of somebody's own refers to, and that are no libraries."""
    found = set()
    for value in list(vars(held).values()):
        name = value.__name__ if isinstance(value, types.ModuleType) else _home(value)
        other = sys.modules.get(name)
        if other is None or name.partition(".")[0] in FOREIGN:
            continue
        if not _is_installed(getattr(other, "__file__", None) or "site-packages"):
            found.add(name)
    return found


def _home(value: Any) -> str:
    return str(getattr(value, "__module__", "") or "")


def _is_installed(file: str) -> bool:
    return not INSTALLED.isdisjoint(Path(file).parts)


def _of_file(path: Path) -> str:
    try:
        if path.stat().st_mtime > _STARTED:
            raise NotStableError(f"{path} was written after this process began")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NotStableError(f"{path} cannot be read: {error.strerror}") from error


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def _own() -> str:
    """All of fisopt's own files."""
    folder = Path(__file__).parents[2]
    said = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        said.update(f"{path.relative_to(folder)} {_of_file(path)}".encode())
    return said.hexdigest()


def surroundings() -> list[str]:
    """What a capture depends on beside the model: versions, devices, settings of torch.

    Raises:
        NotStableError: a mode is active whose effect on torch's functions is not known.
    """
    stacks: Any = _get_current_function_mode_stack, _get_current_dispatch_mode_stack
    modes = [mode for stack in stacks for mode in stack() if not isinstance(mode, DeviceContext)]
    if modes:
        raise NotStableError(f"{type(modes[0]).__name__} is active, a mode of torch's functions")
    return [_own(), cache_tag(own=False), sys.version, platform.machine(), *_of_torch()]


def _of_torch() -> Iterator[str]:
    yield f"{torch.__version__} {torch.version.git_version} {np.__version__}"
    yield f"diffusers {_version('diffusers')} peft {_version('peft')}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"{torch.cuda.get_device_name(index)} {torch.cuda.get_device_capability(index)}"
    names = "flash_sdp_enabled mem_efficient_sdp_enabled math_sdp_enabled cudnn_sdp_enabled"
    yield repr([getattr(torch.backends.cuda, name)() for name in names.split()])
    yield torch.get_float32_matmul_precision()
