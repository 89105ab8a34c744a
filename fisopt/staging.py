"""Staging: hidden folders beside a path in which what takes its place is made.

A staging folder is locked for as long as its writer lives.  One that nobody holds is what a killed
writer left; the next writer in that folder settles it, and says so.  It holds, by name::

    new/        what is to move out; what it replaces, after an exchange
    old/        what was moved out of the way where the system has no exchange
    placed      files that moved out before the last one does, which makes them count
    outdated    files that nothing needs once the last one has moved

The last two are lists of names with device and inode, one a line: a file is removed only if it is
the very one that the writer meant.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows nothing tells a killed writer from a living one: leftovers stay
    fcntl = None  # type: ignore[assignment]

PREFIX = ".fisopt-writing-"
NEW, OLD, PLACED, OUTDATED = "new", "old", "placed", "outdated"
_OURS = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}")
MIB = 1 << 20


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Make a staging folder in a folder, locked, with an empty ``new``; settle it at the end.

    Raises:
        OSError: it cannot be made.
    """
    folder, lock = _made(parent)
    try:
        (folder / NEW).mkdir()
        (folder / OLD).mkdir()
        yield folder
    finally:
        settle(folder)
        if lock is not None:
            os.close(lock)


def note(folder: Path, kind: str, files: Sequence[Path]) -> None:
    """Write down which files a staging folder is about to place, or makes outdated."""
    if not files:
        return
    lines = [f"{_identity(file)} {file.name}\n" for file in files]
    (folder / kind).write_text("".join(lines), encoding="utf-8")
    sync(folder / kind)


def settle(folder: Path) -> list[Path]:
    """Put things right that a writer began, and remove its staging folder.

    Returns:
        What was moved back to its place, because nothing had taken it.
    """
    parent, back = folder.parent, []
    for old in sorted((folder / OLD).iterdir()) if (folder / OLD).is_dir() else ():
        if not os.path.lexists(place := parent / old.name):
            old.rename(place)
            back.append(place)
    moved = not (folder / NEW).is_dir() or not any((folder / NEW).iterdir())
    for identity, name in _noted(folder / (OUTDATED if moved else PLACED)):
        if Path(name).name == name and _identity(parent / name) == identity:
            (parent / name).unlink()
    for kind in (PLACED, OUTDATED):  # first: without ``new`` they would mean something else
        (folder / kind).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return back


def sweep(parent: Path) -> None:
    """Settle what killed writers left in a folder, and say so in a warning."""
    count, size, back = 0, 0, []
    for folder in _left(parent):
        if (lock := _claim(folder, wait=False)) is None:
            continue
        try:
            left = _size(folder)
            back += settle(folder)
            count, size = count + 1, size + left
        except OSError:  # of another user, or on a disk that is read-only now
            continue
        finally:
            os.close(lock)
    if count:
        said = "".join(f"; {path.name} is back in its place" for path in back)
        warnings.warn(
            f"{parent}: removed what {count} killed writer{'s' if count > 1 else ''} left "
            f"({size / MIB:.1f} MiB){said}",
            RuntimeWarning,
            stacklevel=2,
        )


def recover(path: Path) -> None:
    """Bring back what a writer was killed over, if nothing is at a path."""
    try:
        missing = not os.path.lexists(path)
    except ValueError:
        return
    if missing:
        sweep(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder and all that it holds."""
    if path.is_dir() and not path.is_symlink():
        for item in sorted(path.iterdir()):
            sync(item)
        sync_entries(path)
    elif path.is_file():
        _sync(path)


def sync_entries(folder: Path) -> None:
    """Have the disk hold the names in a folder, where it can be told to."""
    try:
        _sync(folder)
    except OSError as error:
        if os.name != "nt":
            warnings.warn(
                f"{folder}: what was just written may be lost if the power fails now: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _made(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; another one if a sweep came between the two."""
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = _claim(folder, wait=True)
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _claim(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder; None if somebody else holds it, it is gone, or it cannot be locked."""
    if fcntl is None:
        return None
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(number)
        return None
    return number


def _left(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return [
                parent / entry.name
                for entry in entries
                if _OURS.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def _identity(file: Path) -> str:
    try:
        found = os.lstat(file)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def _noted(list_: Path) -> list[tuple[str, str]]:
    """Pairs of an identity and a name."""
    if not list_.is_file():
        return []
    lines = list_.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition(" ") for line in lines)
    return [(identity, name) for identity, _, name in pairs if identity and name]


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    files = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files)
