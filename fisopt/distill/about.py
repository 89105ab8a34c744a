"""What decides a run, as text: fisopt continues what an earlier run left if this is the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

NONE = "none"
"""Stands for what one of two descriptions does not have."""


def text(value: Any) -> str:
    """A value as text, the same in every process; tensors, arrays and images by their hash."""
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {text(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    if hasattr(value, "__array_interface__"):
        held = np.ascontiguousarray(np.asarray(value))
        return f"{held.dtype} {list(held.shape)} {hashed(held.tobytes())}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def hashed(data: bytes | Path) -> str:
    """The first digits of the SHA-256 of bytes, or of a file."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()[:16]
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What differs between two descriptions, with both values; empty if nothing does."""
    names = sorted(n for n in {*there, *here} if there.get(n) != here.get(n))
    return "; ".join(
        f"{n}: there {_short(there.get(n, NONE))}, here {_short(here.get(n, NONE))}" for n in names
    )


def _short(said: str) -> str:
    return said if len(said) <= 100 else f"{said[:80]}... ({hashed(said.encode())})"
