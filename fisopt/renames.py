"""Renames that Python's ``os`` does not have: swap two paths, and take a path only if it is free.

Both are one step of the file system, so that a process that is killed leaves a path as it was or
as it is to be.  Linux has them; elsewhere the functions return False and the caller does without.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_HERE = -100
"""AT_FDCWD: paths are relative to the working directory."""
_NO_REPLACE, _EXCHANGE = 1, 2
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


class RenameError(OSError):
    """The system refuses a rename; who writes says of which path."""


def exchanged(one: Path, other: Path) -> bool:
    """Swap what two paths hold.

    Returns:
        Whether the system and the file system can.

    Raises:
        RenameError: they can, and it failed.
    """
    return _renamed(one, other, _EXCHANGE)


def taken(source: Path, target: Path) -> bool:
    """Rename to a path at which there is nothing, not even a link.

    Returns:
        Whether the system and the file system can.

    Raises:
        RenameError: they can, and it failed; its ``errno`` is EEXIST if something is there.
    """
    return _renamed(source, target, _NO_REPLACE)


def _renamed(source: Path, target: Path, how: int) -> bool:
    if (rename := _renameat2()) is None:
        return False
    if rename(_HERE, os.fsencode(source), _HERE, os.fsencode(target), how) == 0:
        return True
    if (code := ctypes.get_errno()) in _CANNOT:
        return False
    raise RenameError(code, os.strerror(code), str(source), None, str(target))


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    path, number = ctypes.c_char_p, ctypes.c_int
    function.argtypes, function.restype = [number, path, number, path, ctypes.c_uint], number
    return function
