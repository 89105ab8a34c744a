"""Every file and folder that fisopt writes: old or new, never neither, never mixed.

What is written is made in a hidden folder beside its place (see `fisopt.staging`), brought to the
disk, and moved to its place in one step.  A process that is killed, a disk that fills, an
exception: each leaves what was there before, or what was to be.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fisopt.errors import ExportError, FileError, FisoptError
from fisopt.renames import RenameError, exchanged, taken
from fisopt.staging import (
    NEW,
    OLD,
    OUTDATED,
    PLACED,
    note,
    recover,
    staging,
    sweep,
    sync,
    sync_entries,
)

Foreign = Callable[[Path], str | None]
"""Says what a folder holds that fisopt did not write; None if there is nothing."""


def write(path: Path | str, data: str | bytes) -> Path:
    """Write one file, in the place of a file or of a link that is there.

    Args:
        path: where; folders above it are made.
        data: what it holds; text is written as UTF-8.

    Returns:
        The path.

    Raises:
        FileError: it cannot be written; what was there is unchanged.
    """
    with written(path, force=True, error=FileError) as beside:
        beside.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def remove(path: Path | str) -> None:
    """Remove one file that fisopt wrote, if it is there.

    Raises:
        FileError: it cannot be removed.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be removed: {_reason(error)}") from error


@contextmanager
def scratch(data: bytes, suffix: str) -> Iterator[Path]:
    """A file that is there for other programs while the context is open.

    Raises:
        FileError: the system's folder for temporary files takes none.
    """
    try:
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(data)
            file.flush()
            yield Path(file.name)
    except OSError as error:
        raise FileError(
            f"a temporary file cannot be written: {_reason(error)}; set TMPDIR to a folder that "
            "takes files"
        ) from error


@contextmanager
def written(
    path: Path | str,
    *,
    force: bool = False,
    foreign: Foreign | None = None,
    outdated: Sequence[Path] = (),
    error: type[FisoptError] = ExportError,
) -> Iterator[Path]:
    """Write a file or a folder beside the place where it goes, and move it there when complete.

    Args:
        path: where it goes; folders above it are made.
        force: whether what is there is replaced: a file, a link (what it points to stays), or a
            folder that holds nothing foreign.
        foreign: of a folder, what it holds that may not be deleted; None where a file is written.
        outdated: files beside ``path`` that belong to what is replaced.
        error: what is raised.

    Yields:
        A path of the same name in an empty folder.  Other files that are written into that folder
        move to the folder of ``path`` before it does; their names must be free there.

    Raises:
        ExportError: or ``error``: the path may not be replaced, see `check_free`, or writing
            failed; then nothing that was there before has changed.
    """
    path = Path(path)
    check_free(path, force=force, foreign=foreign, error=error)
    place = path if path.name not in ("", "..") else path.resolve()
    try:
        with _folder(place.parent), staging(place.parent) as held:
            beside = held / NEW / place.name
            yield beside
            sync(held / NEW)
            check_free(path, force=force, foreign=foreign, error=error)
            note(held, OUTDATED, outdated)
            _place_others(held, beside, place)
            _place(held, beside, place, force=force, foreign=foreign, error=error)
            sync_entries(place.parent)
    except FisoptError:
        raise
    except (OSError, RuntimeError) as reason:
        raise error(
            f"{path} could not be written: {_reason(reason)}; nothing of it is left behind"
        ) from reason


def check_free(
    path: Path | str,
    *,
    force: bool,
    foreign: Foreign | None = None,
    error: type[FisoptError] = ExportError,
) -> None:
    """Raise unless a path is free, or may be replaced by something of its own kind.

    A link is something that is there, wherever it leads.

    Args:
        path: where something is to be written.
        force: whether it may be replaced.
        foreign: of a folder, what it holds that may not be deleted; None for a file.
        error: what is raised.

    Raises:
        ExportError: or ``error``: it exists and ``force`` is not given; a file would replace a
            folder, or a folder a file; a folder holds other things; it is a device, a socket or a
            pipe; nothing can be written there.
    """
    path = Path(path)
    try:
        recover(path)
        wrong = _in_the_way(path, force=force, foreign=foreign)
    except (OSError, ValueError) as reason:
        wrong = f"{path} could not be written: {_reason(reason)}"
    if wrong is not None:
        raise error(wrong)


def _in_the_way(path: Path, *, force: bool, foreign: Foreign | None) -> str | None:
    """Why nothing may be written at a path, in words."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _no_room(path)
    if not force:
        return f"{path} exists; choose another path, or pass force=True (--force)"
    if not path.exists():  # a link to nothing
        return None
    if not stat.S_ISLNK(mode) and not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return (
            f"{path} is a device, a socket or a pipe, which fisopt does not replace: choose "
            "another path"
        )
    if path.is_dir() != (foreign is not None):
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        return (
            f"{path} is {kinds[0]} and {kinds[1]} would be written; force=True (--force) does not "
            "replace one with the other: choose another path"
        )
    if foreign is not None and (found := foreign(path)) is not None:
        return (
            f"{path} holds other things, {found}; force=True (--force) does not delete them: "
            "choose another path"
        )
    return None


def _no_room(path: Path) -> str | None:
    """Why a path that is free cannot be made, in words."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return f"{path} cannot be written: {above} is no folder that takes files"
    return None


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it, which go again if what is done inside fails."""
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        yield
    except BaseException:
        for each in made:
            try:
                each.rmdir()
            except OSError:
                break
        raise


def _place_others(held: Path, beside: Path, place: Path) -> None:
    """Move all but the last file, with a note of them for the case that the last one stays."""
    others = sorted(item for item in beside.parent.iterdir() if item != beside)
    note(held, PLACED, others)
    for item in others:
        _take(item, place.parent / item.name)


def _place(
    held: Path,
    beside: Path,
    place: Path,
    *,
    force: bool,
    foreign: Foreign | None,
    error: type[FisoptError],
) -> None:
    """Move the last one, which makes everything count."""
    if not force or not os.path.lexists(place):
        _take(beside, place)
    elif foreign is None:
        beside.replace(place)
    elif exchanged(beside, place):
        try:
            _check_replaced(beside, place, foreign, error)
        except BaseException:
            exchanged(beside, place)
            raise
    else:
        place.rename(held / OLD / place.name)
        _check_replaced(held / OLD / place.name, place, foreign, error)
        beside.rename(place)


def _check_replaced(old: Path, place: Path, foreign: Foreign, error: type[FisoptError]) -> None:
    """Look again, now that nothing can be added: what was replaced is about to be deleted."""
    if not old.is_symlink() and (found := foreign(old)) is not None:
        raise error(f"{place} holds other things, {found}, since a moment ago; fisopt leaves them")


def _take(source: Path, target: Path) -> None:
    """Rename to a path that must be free."""
    try:
        if taken(source, target):
            return
        there = os.path.lexists(target)
    except RenameError as error:
        there = error.errno == errno.EEXIST
        if not there:
            raise
    if there:
        raise RenameError(errno.EEXIST, f"{target} exists")
    source.rename(target)


def _reason(error: Exception) -> str:
    """What an operating system's error says, without the hidden folder that it says it of."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
