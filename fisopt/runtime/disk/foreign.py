"""Foreign code: packages that no digest reads, and what somebody has put into their namespaces."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
from typing import Any

from fisopt.runtime.disk.tokens import root_of

FOREIGN = {"torch", "numpy", "fisopt", *sys.stdlib_module_names} - {"__main__"}
"""Packages that are known by their version, or whose files are read whole."""


def exchanged_in(holder: Any) -> list[tuple[str, types.FunctionType]]:
    """The functions of somebody else in a module or a class of a library."""
    held = list(vars(holder).items())
    functions = ((n, x) for n, x in held if isinstance(x, types.FunctionType))
    return [(name, function) for name, function in functions if root_of(function) not in FOREIGN]


@functools.cache
def defines(kind: type, name: str) -> bool:
    """Whether a class itself has something of a name: libraries add methods of theirs to others."""
    inherited = any(name in vars(base) for base in kind.__mro__[1:])
    try:
        return inherited or re.search(rf"\b{name}\b", inspect.getsource(kind)) is not None
    except (OSError, TypeError):  # without a source nobody can tell
        return True
