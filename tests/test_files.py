"""Files are written whole or not at all."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from fisopt.errors import ExportError
from fisopt.files import replacing, written


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with replacing(path) as beside:
        beside.write_text("one")
        assert beside.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as one, replacing(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"


def test_a_file_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as beside:
        fill(beside)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_by_path(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with (
        pytest.raises(ExportError, match=f"{path} .*full"),
        written(path, force=True, mark="mark") as beside,
    ):
        fill(beside)
    assert path.is_dir()
    assert list(tmp_path.iterdir()) == [path]


def fill(path: Path) -> None:
    path.write_text("ne")
    raise OSError("the disk is full")


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("old")
    return path


def test_what_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", "mark", "old")
    for force in (False, True):
        with (
            nullcontext() if force else pytest.raises(ExportError, match=r"exists; .*force"),
            written(path, force=force, mark="mark") as beside,
        ):
            folder_of(beside, "mark")
        assert (path / "old").exists() is not force
    assert list(tmp_path.iterdir()) == [path]


def test_force_deletes_nothing_of_another_kind(tmp_path: Path) -> None:
    """A mistaken path must not cost a folder of other things."""
    foreign = folder_of(tmp_path / "videos", "a.mp4")
    file = foreign / "a.mp4"
    for path, mark, message in (
        (foreign, None, "is a folder and a file is to be written"),
        (file, "mark", "is a file and a folder is to be written"),
        (foreign, "mark", "holds other things, there is no mark in it"),
    ):
        with (
            pytest.raises(ExportError, match=message),
            written(path, force=True, mark=mark) as beside,
        ):
            folder_of(beside, "mark")
    assert file.read_text() == "old"
    with written(folder_of(tmp_path / "empty"), force=True, mark="mark") as beside:
        folder_of(beside, "mark")


def test_a_link_to_a_folder_is_replaced_and_the_folder_kept(tmp_path: Path) -> None:
    real, link = folder_of(tmp_path / "real", "mark"), tmp_path / "link"
    link.symlink_to(real)
    with written(link, force=True, mark="mark") as beside:
        folder_of(beside, "mark", "new")
    assert (link / "new").exists()
    assert [p.name for p in real.iterdir()] == ["mark"]


def test_what_is_written_beside_needs_force_too(tmp_path: Path) -> None:
    (tmp_path / "a.table").write_text("mine")
    for force in (False, True):
        with (
            nullcontext() if force else pytest.raises(ExportError, match=r"a\.table exists"),
            written(tmp_path / "a", force=force) as beside,
        ):
            beside.write_text("new")
            beside.with_name("a.table").write_text("new")
        assert (tmp_path / "a.table").read_text() == ("new" if force else "mine")
        assert (tmp_path / "a").exists() is force


def test_a_place_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "new" / "a"
    with pytest.raises(ExportError, match="file is no folder that takes files"), written(path):
        raise AssertionError("not reached")
