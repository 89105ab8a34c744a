"""Files of torch.export: written by it, read as data; the manifest is inside."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fisopt.artefact.digests import EXTRA
from fisopt.artefact.manifest import DTYPES, Manifest
from fisopt.artefact.package import Package, packed
from fisopt.artefact.program_file import check_parts, read_module, read_program
from fisopt.artefact.ranks import check_groups, regroup
from fisopt.errors import ExportError, shown
from fisopt.reading import LARGEST
from fisopt.stored.graph_file import ProgramFile

SUFFIX = ".pt2"


def write(program: ExportedProgram, path: Path) -> None:
    """Write a program.

    Raises:
        OSError: writing failed.
    """
    program.example_inputs = None  # torch would pickle them
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.export.save(program, sink)  # type: ignore[arg-type]
    if sink.error is not None:
        raise sink.error


def append(path: Path, manifest: str) -> None:
    """Write the manifest into a file that has none; the same program gives the same bytes."""
    with zipfile.ZipFile(path, "a") as package:
        root = package.namelist()[0].partition("/")[0]
        package.writestr(zipfile.ZipInfo(f"{root}/{EXTRA}"), manifest)


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
        FileError: it cannot be read.
    """
    with packed(path) as package:
        return package.read(EXTRA, LARGEST) if EXTRA in package.parts else None


def check(path: Path, manifest: Manifest, index: int, *, any_library: bool = False) -> None:
    """Read a variant's program without its weights; see `read`."""
    with packed(path) as package:
        _program(package, path, manifest, index, any_library)


def read(
    path: Path,
    manifest: Manifest,
    index: int,
    *,
    any_library: bool = False,
    groups: Mapping[str, str] = MappingProxyType({}),
) -> fx.GraphModule:
    """Read a variant's program as a module; it takes tensors in the order of the manifest.

    Args:
        path: the file.
        manifest: the artefact's.
        index: position of the variant.
        any_library: take operators too that other libraries have registered.
        groups: the group of this process for each that the graph calls.

    Raises:
        ExportError: the file is damaged, holds more than data, needs an operator that is not
            there, or is not what the manifest says.
        FileError: it cannot be read.
    """
    with packed(path) as package:
        program = _program(package, path, manifest, index, any_library)
        regroup(program.graph, groups)
        return read_module(package, program, str(path))


def _program(
    package: Package, path: Path, manifest: Manifest, index: int, any_library: bool
) -> ProgramFile:
    check_parts(package, EXTRA, str(path))
    program = read_program(package, str(path), any_library=any_library)
    check_groups(program.graph, manifest.mesh)
    variant, call = manifest.variants[index], manifest.call
    taken = (*call.tensors, *variant.state)
    if list(program.inputs) != [t.name for t in taken]:
        raise ExportError(
            f"{path} takes {shown(list(program.inputs))}, the manifest says "
            f"{shown([t.name for t in taken])}; export it again"
        )
    if len(program.results) != len(call.results) + len(variant.stores):
        raise ExportError(
            f"{path} returns {len(program.results)} tensors, the manifest says "
            f"{len(call.results) + len(variant.stores)}; export it again"
        )
    forms = (*program.inputs.values(), *program.results)
    for said, form in zip((*taken, *call.results), forms, strict=False):
        sizes = tuple(size if isinstance(size, int) else None for size in said.shape)
        if (DTYPES[said.dtype], sizes) != (form.dtype, form.shape):
            raise ExportError(
                f"{path}: {said.name} is {form}, the manifest says {list(said.shape)} of "
                f"{said.dtype}; export it again"
            )
    return program


Runner = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]


def runner(module: Any) -> Runner:
    """Call a module by the names of its tensors."""

    def run(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(**values))

    return run


def placed(module: Any) -> Runner:
    """Call a module that takes its tensors in the order of the manifest."""

    def run(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(*values.values()))

    return run
