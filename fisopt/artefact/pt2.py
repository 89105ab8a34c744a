"""Files of torch.export: written with the manifest inside, read with it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch.export import ExportedProgram

from fisopt.artefact.manifest import ENTRY
from fisopt.errors import ExportError

SUFFIX = ".pt2"


def write(program: ExportedProgram, path: Path, manifest: str) -> None:
    """Write a program and the manifest that describes it.

    Raises:
        OSError: writing failed.
    """
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.export.save(program, sink, extra_files={ENTRY: manifest})  # type: ignore[arg-type]
    if sink.error is not None:
        raise sink.error


class _Sink(io.RawIOBase):
    """A file whose errors wait until the end: torch's writer ends the process when one is raised.

    Attributes:
        error: the first error of a write; nothing is written after it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See `io.IOBase`."""
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)


def manifest_of(path: Path) -> bytes | None:
    """The manifest in a file, None if it is a whole file of another origin.

    Raises:
        ExportError: the file is not complete, or of no known kind.
    """
    try:
        with zipfile.ZipFile(path) as held:
            names = [n for n in held.namelist() if n.endswith(f"/{ENTRY}")]
            return held.read(names[0]) if names else None
    except zipfile.BadZipFile as error:
        raise ExportError(
            f"{path} is not a complete .pt2 file: {error}; copy or export it again"
        ) from error


def read(path: Path) -> torch.nn.Module:
    """Read a program as a module.

    Raises:
        ExportError: the file is damaged, or needs an operator that is not there.
    """
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise ExportError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


Runner = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]


def runner(module: Any) -> Runner:
    """Call a module by the names of its tensors."""

    def run(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(**values))

    return run
