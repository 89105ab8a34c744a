"""The manifest in an ONNX file, read and appended without the rest of the file.

An ONNX file is a protobuf message: records of a number, a length and bytes, of which two after
each other are one message.  The manifest is one record of metadata, the last one; what is hashed
is everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fisopt.artefact.manifest import ENTRY
from fisopt.errors import ExportError
from fisopt.reading import LARGEST, MIB, MalformedError, opened

_METADATA = 14
"""Number of the records of metadata in ONNX's ModelProto; their 1 is the key, their 2 the value."""
_MOST = 10_000
"""Records of a file; a model has about ten."""


def manifest_of(path: Path) -> bytes | None:
    """The manifest in a file, None if it is a whole file of another origin.

    Raises:
        ExportError: the file is not complete, or no ONNX file.
        FileError: it cannot be read.
    """
    with opened(path) as file:
        found = [text for _, _, text in _records(file, path) if text is not None]
    if len(found) > 1:
        raise ExportError(f"{path} holds {len(found)} manifests, wanted one; export it again")
    return found[0] if found else None


def sha256(path: Path) -> str:
    """Hash of a file without its manifest.

    Raises:
        ExportError: the file is not complete, or no ONNX file.
        FileError: it cannot be read.
    """
    held = hashlib.sha256()
    with opened(path) as file:
        for start, end, text in list(_records(file, path)):
            if text is None:
                file.seek(start)
                while chunk := file.read(min(MIB, end - file.tell())):
                    held.update(chunk)
    return held.hexdigest()


def append(path: Path, text: str) -> None:
    """Write a manifest into a file that has none."""
    key, value = ENTRY.encode(), text.encode()
    entry = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value
    with path.open("ab") as file:
        file.write(_varint(_METADATA << 3 | 2) + _varint(len(entry)) + entry)


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Where every record starts and ends, and the manifest if it is that."""
    size = file.seek(0, 2)
    start = count = 0
    try:
        while start < size:
            file.seek(start)
            tag = _number(file)
            kind, length = tag & 7, 0
            if kind == 0:
                _number(file)
            elif kind == 2:
                length = _number(file)
            else:
                length = {1: 8, 5: 4}[kind]
            end, count = file.tell() + length, count + 1
            _check_record(tag >> 3, end <= size and count <= _MOST, start)
            yield start, end, _manifest(file, length) if tag >> 3 == _METADATA else None
            start = end
    except (ValueError, KeyError, IndexError) as error:
        why = error if isinstance(error, MalformedError) else _no_record(start)
        raise ExportError(
            f"{path} is not a complete ONNX or .pt2 file: {why}; copy or export it again"
        ) from error


def _check_record(number: int, fits: bool, start: int) -> None:
    if not number or not fits:
        raise MalformedError(_no_record(start))


def _no_record(start: int) -> str:
    return f"there is no record at byte {start}"


def _manifest(file: BinaryIO, length: int) -> bytes | None:
    """The value of an entry of metadata, if it is the manifest."""
    prefix = b"\x0a" + _varint(len(ENTRY)) + ENTRY.encode() + b"\x12"
    if file.read(len(prefix)) != prefix:
        return None
    before = file.tell()
    size = _number(file)
    if len(prefix) + file.tell() - before + size != length or size > LARGEST:
        raise MalformedError("the manifest is no entry of metadata")
    return file.read(size)


def _number(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise MalformedError("a length has more than 63 bits")


def _varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))
