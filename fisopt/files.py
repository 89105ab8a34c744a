"""Files that are written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fisopt.errors import ExportError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write one file beside ``path``, whose place it takes when it is complete.

    Yields:
        A path of its own with the same suffix, so that two processes may write at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written(path: Path | str, *, force: bool = False) -> Iterator[Path]:
    """Write a file or a folder beside the place where it goes, and move it there when complete.

    Yields:
        A path of the same name in an empty folder.  What else is written into that folder moves
        to the folder of ``path``, before ``path`` itself does.

    Raises:
        ExportError: the path exists and ``force`` is not given, or writing failed; then nothing
            that was there before has changed.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fisopt-", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        try:
            yield beside
        except (OSError, RuntimeError) as error:
            raise ExportError(
                f"{path} could not be written: {error}; nothing of it is left behind"
            ) from error
        others = sorted(item for item in Path(folder).iterdir() if item != beside)
        for item in (*others, beside):
            _move(item, path.parent / item.name, Path(folder))


def refuse_existing(path: Path | str, *, force: bool) -> None:
    """Raise unless a path is free or may be replaced."""
    if Path(path).exists() and not force:
        raise ExportError(f"{path} exists; choose another path, or pass force=True (--force)")


def _move(source: Path, target: Path, folder: Path) -> None:
    """Rename; a folder that is there is kept until the new one is in its place."""
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
    shutil.rmtree(old)
