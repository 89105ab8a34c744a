"""What Inductor's cache on the disk must know of operators: their definitions.

A graph names the operators that it calls, and what Inductor makes of it depends on the values that
they are said to return.  A newer definition of the same name would meet code of an older one.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from fisopt.rewrite.ops.operator import operators


def cache_tag(*, own: bool = True) -> str:
    """A digest of the definitions of all declared operators.

    Args:
        own: whether those of fisopt count too, which are declared as its parts are imported.
    """
    digest = hashlib.blake2b(digest_size=8)
    for made in sorted(operators(), key=lambda made: str(made.target)):
        home = inspect.unwrap(made.reference).__module__ or ""
        if not own and home.partition(".")[0] == "fisopt":
            continue
        digest.update(str(made.target).encode())
        digest.update(_definition(made.reference))
    return f"fisopt-{digest.hexdigest()}"


@cache
def _definition(reference: Callable[..., Any]) -> bytes:
    """The file that an operator is declared in; its code where it has none, as in a notebook."""
    own = inspect.unwrap(reference)
    try:
        return Path(inspect.getsourcefile(own) or "").read_bytes()
    except (OSError, TypeError):
        code = getattr(own, "__code__", None)
        return _bytes_of(code) if isinstance(code, CodeType) else repr(own).encode()


def _bytes_of(code: CodeType) -> bytes:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    plain = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return code.co_code + repr((plain, code.co_names)).encode() + b"".join(map(_bytes_of, inner))
