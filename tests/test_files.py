"""Files are written whole or not at all."""

from __future__ import annotations

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
    with pytest.raises(ExportError, match=f"{path} .*full"), written(path, force=True) as beside:
        fill(beside)
    assert path.is_dir()
    assert list(tmp_path.iterdir()) == [path]


def fill(path: Path) -> None:
    path.write_text("ne")
    raise OSError("the disk is full")


def test_what_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ExportError, match="force"), written(path) as beside:
        beside.mkdir()
    assert (path / "old").exists()
    with written(path, force=True) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
