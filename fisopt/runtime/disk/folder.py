"""The folder of captures: JSON files by key, whole or not there, of a bounded size in all."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisopt.codegen.emit.cache import folder as cache_folder
from fisopt.codegen.emit.cache import is_off, write
from fisopt.errors import FisoptError
from fisopt.reading import MIB, json_value, read_bytes

LIMIT = 256 * MIB
"""Bytes of all files; beyond, what was used least recently goes."""
LARGEST = 32 * MIB
"""Bytes of one file."""
SUFFIX = ".json"
_DIGEST = 64


def captures() -> Folder | None:
    """Where captures are kept; None if the disk cache is off."""
    return None if is_off() else Folder(cache_folder() / "captures")


@dataclass(frozen=True)
class Folder:
    """A folder of captures; processes may share it.

    Attributes:
        path: where it is.
        limit: bytes of all that it holds.
    """

    path: Path
    limit: int = LIMIT

    def read(self, key: str) -> Any:
        """What is kept under a key; None if nothing is.

        Raises:
            FisoptError: it is not what was written there.
        """
        path = self.path / f"{key}{SUFFIX}"
        if not path.exists():
            return None
        data = read_bytes(path, LARGEST)
        digest, body = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(key.encode() + body).hexdigest().encode() != digest:
            raise FisoptError("it does not hold what was written there")
        value = json_value(body)
        with suppress(OSError):  # of a folder that may only be read, nothing goes
            os.utime(path)
        return value

    def write(self, key: str, value: Any) -> str:
        """Keep plain values under a key; return why that is not possible, in words."""
        body = json.dumps(value, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(key.encode() + body.encode()).hexdigest()
        if len(body) > LARGEST:
            return f"it would take {len(body):,} bytes, up to {LARGEST:,} are kept"
        if not write(self.path / f"{key}{SUFFIX}", digest + body):
            return f"{self.path} cannot be written"
        self._make_room()
        return ""

    def files(self) -> list[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and its path; the oldest first."""
        found = []
        for path in self.path.glob(f"*{SUFFIX}"):
            try:
                state = path.stat()
            except OSError:  # another process removes it
                continue
            found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _make_room(self) -> None:
        files = self.files()
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= self.limit:
                return
            path.unlink(missing_ok=True)
            held -= size
