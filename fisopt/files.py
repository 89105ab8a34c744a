"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fisopt.errors import ExportError, FileError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write one file beside ``path``, whose place it takes when it is complete.

    Yields:
        A path of its own with the same suffix, so that two processes may write at once.

    Raises:
        FileError: it cannot be written; what was there is unchanged.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error}") from error


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Name the file that cannot be read.

    Raises:
        FileError: the file is not there, is a folder, or may not be read.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def written(path: Path | str, *, force: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Write a file or a folder beside the place where it goes, and move it there when complete.

    Args:
        path: where it goes.
        force: whether what is there is replaced.
        mark: of a folder, a file that every such folder holds; None for a file.

    Yields:
        A path of the same name in an empty folder.  What else is written into that folder moves
        to the folder of ``path``, before ``path`` itself does, and is subject to ``force`` too.

    Raises:
        ExportError: the path may not be replaced, see `check_free`, or writing failed; then
            nothing that was there before has changed.
    """
    path = Path(path)
    check_free(path, force=force, mark=mark)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".fisopt-", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            beside = Path(folder) / path.name
            yield beside
            others = sorted(item for item in Path(folder).iterdir() if item != beside)
            for item in others:
                check_free(path.parent / item.name, force=force)
            for item in (*others, beside):
                _move(item, path.parent / item.name, Path(folder))
    except (OSError, RuntimeError) as error:
        raise ExportError(
            f"{path} could not be written: {error}; nothing of it is left behind"
        ) from error


def check_free(path: Path | str, *, force: bool, mark: str | None = None) -> None:
    """Raise unless a path is free, or may be replaced by something of its own kind.

    Args:
        path: where something is to be written.
        force: whether it may be replaced.
        mark: of a folder, a file that tells one that may be deleted; None for a file.

    Raises:
        ExportError: it exists and ``force`` is not given; a file would replace a folder, or a
            folder a file; a folder holds other things; nothing can be written there.
    """
    path = Path(path)
    if not path.exists():
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ExportError(f"{path} cannot be written: {above} is no folder that takes files")
        return
    if not force:
        raise ExportError(f"{path} exists; choose another path, or pass force=True (--force)")
    if path.is_dir() != (mark is not None):
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise ExportError(
            f"{path} is {kinds[0]} and {kinds[1]} is to be written; force=True (--force) does not "
            "replace one by the other: choose another path"
        )
    if mark is not None and any(path.iterdir()) and not (path / mark).is_file():
        raise ExportError(
            f"{path} holds other things, there is no {mark} in it; force=True (--force) does not "
            "delete them: choose another path"
        )


def _move(source: Path, target: Path, folder: Path) -> None:
    """Rename; a folder that is there waits in ``folder`` until the new one is in its place."""
    if not target.is_dir():
        source.replace(target)
        return
    old = folder / f"{target.name}.old"
    target.rename(old)
    try:
        source.replace(target)
    except OSError:
        old.rename(target)
        raise
