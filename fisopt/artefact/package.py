"""The parts of a ``.pt2`` archive: a zip file in which every part is stored as it is.

Sizes come from the archive's directory and are checked against the file before a part is read; a
part that is compressed, encrypted, laid over another or outside the archive's folder is refused.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fisopt.errors import ExportError, shown
from fisopt.reading import MIB, opened

DIRECTORY = 16 * MIB
"""Bytes of an archive's directory, about a hundred a part."""
_CHUNK = MIB


class Package:
    """An archive, open for reading.

    Attributes:
        parts: the size of every part in bytes, by its name in the archive's folder.
    """

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self._archive, self._where = archive, where
        self._entries = _checked(archive, where)
        self.parts = {name: entry.file_size for name, entry in self._entries.items()}

    def read(self, name: str, most: int) -> bytes:
        """A part that has at most some bytes.

        Raises:
            ExportError: it is not there, is larger or is damaged.
        """
        size = self._size(name)
        if size > most:
            raise ExportError(f"{self._where}: {name} has {size:,} bytes, wanted at most {most:,}")
        held = bytearray(size)
        self.fill(name, memoryview(held))
        return bytes(held)

    def fill(self, name: str, held: memoryview) -> None:
        """Read a part into memory of its size."""
        place = 0
        for chunk in self._chunks(name):
            held[place : place + len(chunk)] = chunk
            place += len(chunk)

    def sha256(self, name: str) -> str:
        """Hash of a part."""
        held = hashlib.sha256()
        for chunk in self._chunks(name):
            held.update(chunk)
        return held.hexdigest()

    def _size(self, name: str) -> int:
        if name not in self.parts:
            raise ExportError(f"{self._where} is not complete: it has no {name}; export it again")
        return self.parts[name]

    def _chunks(self, name: str) -> Iterator[bytes]:
        self._size(name)
        try:
            with self._archive.open(self._entries[name]) as part:
                while chunk := part.read(_CHUNK):
                    yield chunk
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ExportError(
                f"{self._where} cannot be loaded: {name} is damaged: {error}; copy or export it "
                "again"
            ) from error


@contextmanager
def packed(path: Path) -> Iterator[Package]:
    """Open an archive.

    Raises:
        FileError: it is no regular file, or cannot be read.
        ExportError: it is not complete, or not stored as torch stores it.
    """
    with opened(path) as file:
        try:
            archive = zipfile.ZipFile(_Bounded(file))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, LookupError) as error:
            raise ExportError(
                f"{path} is not a complete .pt2 file: {error}; copy or export it again"
            ) from error
        with archive:
            yield Package(archive, str(path))


class _Bounded:
    """A file of which no more than a directory's bytes are read at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        held = self._file.read(DIRECTORY + 1 if size < 0 else min(size, DIRECTORY + 1))
        if len(held) > DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {DIRECTORY:,} bytes")
        return held

    def close(self) -> None:
        """Who has opened the file closes it."""


def _checked(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The entries by their name in the archive's one folder."""
    entries: dict[str, zipfile.ZipInfo] = {}
    end = 0
    root = archive.infolist()[0].filename.partition("/")[0] if archive.infolist() else ""
    for entry in sorted(archive.infolist(), key=lambda e: e.header_offset):
        folder, _, name = entry.filename.partition("/")
        plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 0x1
        steps = name.split("/")
        if (
            not plain
            or entry.compress_size != entry.file_size
            or folder != root
            or name in entries
            or not all(steps)
            or {".", ".."} & set(steps)
            or "\\" in name
        ):
            raise ExportError(
                f"{where} holds the entry {shown(entry.filename)}, which is "
                + ("twice in it" if name in entries else "not stored as fisopt.export stores it")
                + "; export it again"
            )
        if entry.header_offset < end:
            raise ExportError(f"{where}: the entry {shown(entry.filename)} lies over another")
        end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.file_size
        entries[name] = entry
    if end > archive.start_dir:
        raise ExportError(f"{where} is not complete: parts of it are missing; export it again")
    return entries
