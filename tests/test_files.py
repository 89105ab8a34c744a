"""Files and folders are old or new, whatever happens to the process that writes them."""

from __future__ import annotations

import ast
import os
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import fisopt
from fisopt import files, renames, staging
from fisopt.errors import ExportError, FileError, FisoptError
from fisopt.files import remove, scratch, write, written
from tests.crash.kill import Death, run


def holds(path: Path) -> dict[str, str]:
    """Everything below a folder, by name."""
    found = sorted(p for p in path.rglob("*") if not p.is_dir())
    return {str(p.relative_to(path)): p.read_text() for p in found}


def folder_of(path: Path, *names: str, text: str = "old") -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(text)
    return path


def but(*names: str) -> Callable[[Path], str | None]:
    """What a folder holds but some names."""

    def other(folder: Path) -> str | None:
        found = [p.name for p in sorted(folder.iterdir()) if p.name not in names]
        return ", ".join(found) or None

    return other


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder: that of Linux, and that of other systems."""
    if request.param != "exchange":
        monkeypatch.setattr(renames, "_renameat2", lambda: None)
    return str(request.param)


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with written(path) as beside:
        beside.write_text("one")
        assert beside.name == path.name
        assert not path.exists()
    assert holds(tmp_path) == {"new/a.json": "one"}
    assert write(path, "two") == path
    assert write(path, b"three").read_bytes() == b"three"
    assert os.listdir(path.parent) == ["a.json"]


def test_two_writers_do_not_meet(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.json"
    with written(path, force=True) as one, written(path, force=True) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"

    def meet() -> None:
        with written(tmp_path / "b") as beside:
            beside.write_text("one")
            write(tmp_path / "b", "two")

    with pytest.raises(ExportError, match="exists"):
        meet()
    assert holds(tmp_path) == {"a.json": "one", "b": "two"}, "it is not free any more"


@pytest.fixture(params=["full", "interrupted", "runtime"])
def trouble(request: pytest.FixtureRequest) -> BaseException:
    kinds = {
        "full": OSError(28, "No space left on device"),
        "interrupted": KeyboardInterrupt(),
        "runtime": RuntimeError("PytorchStreamWriter failed"),
    }
    return kinds[request.param]


def break_off(path: Path, foreign: files.Foreign | None, trouble: BaseException) -> None:
    with written(path, force=True, foreign=foreign) as beside:
        if foreign is None:
            beside.write_text("half")
        else:
            folder_of(beside, "mark", text="half")
        raise trouble


def test_what_breaks_off_leaves_what_was_there(
    tmp_path: Path, trouble: BaseException, way: str
) -> None:
    folder_of(tmp_path / "folder", "mark")
    (tmp_path / "file").write_text("old")
    before = holds(tmp_path)
    wanted = type(trouble) if isinstance(trouble, KeyboardInterrupt) else ExportError
    for name, foreign in (("file", None), ("folder", but("mark")), ("new/deep/file", None)):
        with pytest.raises(wanted) as raised:
            break_off(tmp_path / name, foreign, trouble)
        assert holds(tmp_path) == before
        assert sorted(os.listdir(tmp_path)) == ["file", "folder"], "nor a folder for it"
        if wanted is ExportError:
            assert str(tmp_path / name) in str(raised.value)
            assert str(getattr(trouble, "strerror", None) or trouble) in str(raised.value)


def test_what_exists_is_replaced_only_by_force(tmp_path: Path, way: str) -> None:
    path = folder_of(tmp_path / "a", "mark", "old")
    for force in (False, True):
        with (
            nullcontext() if force else pytest.raises(ExportError, match=r"exists; .*force"),
            written(path, force=force, foreign=but("mark", "old")) as beside,
        ):
            folder_of(beside, "mark")
        assert (path / "old").exists() is not force
    assert os.listdir(tmp_path) == ["a"]


def test_force_deletes_nothing_of_another_kind(tmp_path: Path) -> None:
    """A mistaken path must not cost a folder of other things."""
    foreign = folder_of(tmp_path / "videos", "a.mp4")
    file = foreign / "a.mp4"
    os.mkfifo(tmp_path / "pipe")
    for path, told, message in (
        (foreign, None, "is a folder and a file would be written"),
        (file, but("mark"), "is a file and a folder would be written"),
        (foreign, but("mark"), "holds other things, a.mp4; .* choose another path"),
        (tmp_path / "pipe", None, "a pipe, which fisopt does not"),
        (Path("/dev/null"), None, "is a device"),
    ):
        with (
            pytest.raises(ExportError, match=message),
            written(path, force=True, foreign=told) as beside,
        ):
            folder_of(beside, "mark")
    assert file.read_text() == "old"
    with written(folder_of(tmp_path / "empty"), force=True, foreign=but("mark")) as beside:
        folder_of(beside, "mark")


def test_what_comes_while_writing_stays(tmp_path: Path, way: str) -> None:
    """The folder is looked at again before it is deleted."""
    path = folder_of(tmp_path / "a", "mark")
    looked: list[Path] = []

    def foreign(folder: Path) -> str | None:
        looked.append(folder)
        if len(looked) == 2:  # the last look before the move
            found = but("mark")(folder)
            (folder / "mine").write_text("mine")
            return found
        return but("mark")(folder)

    with (
        pytest.raises(ExportError, match="mine, since a moment ago; fisopt leaves them"),
        written(path, force=True, foreign=foreign) as beside,
    ):
        folder_of(beside, "mark", text="new")
    assert len(looked) == 3
    assert holds(tmp_path) == {"a/mark": "old", "a/mine": "mine"}


def test_links(tmp_path: Path, way: str) -> None:
    """A link is something that is there; what replaces it leaves alone what it points to."""
    real = folder_of(tmp_path / "real", "mark")
    (tmp_path / "file").write_text("old")
    for name, to in (("to_folder", "real"), ("to_file", "file"), ("dangling", "nowhere")):
        link = tmp_path / name
        for foreign in (but("mark"), None):
            if (name, foreign is None) in (("to_folder", True), ("to_file", False)):
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(to)
            with pytest.raises(ExportError, match="exists"), written(link, foreign=foreign):
                raise AssertionError("not reached")
            with written(link, force=True, foreign=foreign) as beside:
                _ = folder_of(beside, "new") if foreign else beside.write_text("new")
            assert not link.is_symlink()
            assert link.is_dir() is (foreign is not None)
            if link.is_dir():
                (link / "new").unlink()
                link.rmdir()
    assert holds(real) == {"mark": "old"}
    assert (tmp_path / "file").read_text() == "old"
    (tmp_path / "through").symlink_to("real")
    write(tmp_path / "through" / "new", "new")
    assert (real / "new").read_text() == "new", "links above the path are followed"
    (tmp_path / "through").unlink()
    (tmp_path / "through").symlink_to("other")
    with pytest.raises(FileError, match="through is no folder that takes files"):
        write(tmp_path / "through" / "new", "new")


def test_further_files(tmp_path: Path) -> None:
    """Their names must be free, force or not; those that are outdated go once the last one is there."""
    (tmp_path / "a.0").write_text("mine")
    (tmp_path / "a").write_text("old")
    for number in (0, 1):
        with (
            nullcontext() if number else pytest.raises(ExportError, match=r"a\.0 exists"),
            written(tmp_path / "a", force=True, outdated=[tmp_path / "a.old"]) as beside,
        ):
            beside.write_text("new")
            beside.with_name(f"a.{number}").write_text("new")
            (tmp_path / "a.old").write_text("old")
        assert (tmp_path / "a.old").exists() is not bool(number)
    assert holds(tmp_path) == {"a": "new", "a.0": "mine", "a.1": "new"}


def unwritable(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").touch()
    folder_of(tmp_path / "folder", "inside")
    return {
        "no folder above": tmp_path / "file" / "new" / "a",
        "name too long": tmp_path / ("a" * 300),
        "folder name too long": tmp_path / ("a" * 300) / "a",
        "a folder": tmp_path / "folder",
        "null": tmp_path / "a\0b",
        "read-only": Path("/proc/a.json"),
        "root": Path("/"),
    }


def test_every_reason_is_an_error_of_ours(tmp_path: Path) -> None:
    schedule = fisopt.Schedule(((1, 4),), ((0, 5),), ((3, 0.5),), ((5, 0.25),))
    for path in unwritable(tmp_path).values():
        for save in (
            lambda at: write(at, "text"),
            fisopt.MaskTable({"blocks.0": 2}).save,
            schedule.save,
        ):
            with pytest.raises(FisoptError) as raised:
                save(path)  # type: ignore[operator]
            assert isinstance(raised.value, FileError)
            assert str(path) in str(raised.value)
    assert holds(tmp_path) == {"file": "", "folder/inside": "old"}
    with pytest.raises(FileError, match=r"cannot be removed: Is a directory|not permitted"):
        remove(tmp_path / "folder")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """As on a disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk(tmp_path: Path) -> None:
    schedule = fisopt.Schedule(((1, 4),) * 90, ((0, 5),) * 90, ((3, 0.5),), ((5, 0.25),))
    table = fisopt.MaskTable({f"blocks.{i}": 2 for i in range(90)})
    saves = {"s.yaml": schedule.save, "t.json": table.save, "x": lambda at: write(at, "x" * 999)}
    for name, save in saves.items():
        path = tmp_path / name
        with small_files(500), pytest.raises(FileError, match=rf"{name} .*File too large"):
            save(path)  # type: ignore[operator]
        path.write_text("old")
        with small_files(500), pytest.raises(FileError, match=rf"{name} .*File too large"):
            save(path)  # type: ignore[operator]
        assert path.read_text() == "old"
    with (
        small_files(500),
        pytest.raises(FileError, match=r"temporary file .*too large"),
        scratch(b"x" * 999, ".bin"),
    ):
        raise AssertionError("not reached")
    assert sorted(os.listdir(tmp_path)) == sorted(saves)


def replace_folder(path: Path) -> None:
    with written(path, force=True, foreign=but("one", "two")) as beside:
        folder_of(beside, "one", "two", text="new")


def replace_file(path: Path) -> None:
    write(path, "new")


def replace_files(path: Path) -> None:
    """A file with another beside it, named so that old and new do not meet."""
    with written(path, force=True, outdated=[path.with_name("x.old")]) as beside:
        beside.write_text("new")
        beside.with_name("x.new").write_text("new")


OLD_AND_NEW = {
    replace_folder: ({"x/one": "old", "x/two": "old"}, {"x/one": "new", "x/two": "new"}),
    replace_file: ({"x": "old"}, {"x": "new"}),
    replace_files: ({"x": "old", "x.old": "old"}, {"x": "new", "x.new": "new"}),
}


@pytest.mark.parametrize("replace", OLD_AND_NEW)
def test_a_writer_that_is_killed_anywhere(
    replace: Callable[[Path], None], tmp_path: Path, way: str
) -> None:
    """What it leaves is old or new at the next use; the next writer cleans up, and says so."""
    old, new = OLD_AND_NEW[replace]
    seen, point = [], 0
    while True:
        there = tmp_path / str(point)
        for name, text in old.items():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_text(text)
        (there / "mine").write_text("mine")
        end = run(lambda: replace(there / "x"), Death(point))  # noqa: B023
        with warnings_of(there) as told:
            staging.recover(there / "x")
        assert (there / "x").exists()
        left = [name for name in os.listdir(there) if name.startswith(staging.PREFIX)]
        with warnings_of(there) as more:
            write(there / "probe", "")
        assert bool(left) is any("killed writer left" in line for line in more)
        assert told == [] or any("x is back in its place" in line for line in told)
        (there / "probe").unlink()
        (there / "mine").unlink()
        assert holds(there) in (old, new), (point, told, more)
        seen.append(holds(there) == new)
        if end == "done":
            break
        assert end == "killed", end
        point += 1
    assert point > 8
    assert seen == sorted(seen), "once it is new it stays so"
    assert set(seen) == {False, True}


@contextmanager
def warnings_of(folder: Path) -> Iterator[list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told: list[str] = []
        yield told
    told += [str(w.message) for w in caught if str(folder) in str(w.message)]


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    with written(tmp_path / "a") as beside:
        beside.write_text("a")
        write(tmp_path / "b", "b")
        assert beside.exists()
    assert holds(tmp_path) == {"a": "a", "b": "b"}


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    """Folders of other names, and files that a list in an archive claims."""
    folder_of(tmp_path / ".fisopt-notes", "mine")
    folder_of(tmp_path / f"{staging.PREFIX}mine", "mine")
    (tmp_path / f"{staging.PREFIX}{'0' * 16}").write_text("a file")
    (tmp_path / "mine").write_text("mine")
    crafted = folder_of(tmp_path / f"{staging.PREFIX}{'1' * 16}")
    for name in (staging.OUTDATED, staging.PLACED):
        (crafted / name).write_text("1:2 mine\n0:0 ../mine\nmine\n")
    before = holds(tmp_path)
    with pytest.warns(RuntimeWarning, match="removed what 1 killed writer left"):
        write(tmp_path / "b", "b")
    after = holds(tmp_path)
    assert after.pop("b") == "b"
    assert after == {k: v for k, v in before.items() if crafted.name not in k}


OUTSIDE = {
    "artefact/export.py": {"mkdir", "write_text"},
    "artefact/pt2.py": {"open", "save", "ZipFile"},
    "cli/ranks_demo.py": {"open"},
    "runtime/disk/folder.py": {"unlink"},
    "artefact/onnx.py": {"save"},
    "artefact/onnx_file.py": {"open"},
    "recipe/recipe.py": {"write_bytes"},
    "cli/pictures.py": {"savefig", "imwrite"},
    "distill/lora.py": {"mkdir", "save_file"},
    "distill/prepared.py": {"save_file"},
    "distill/saving.py": {"save_pretrained", "write_text"},
    "distill/trainer.py": {"save"},
    "distill/watching.py": {"imwrite"},
}
"""Calls that fill what `written` has made, write to memory or nowhere, or make room in a cache."""
WRITES = {
    *(
        "write_text",
        "write_bytes",
        "savefig",
        "imwrite",
        "imsave",
        "save_file",
        "mkdir",
        "makedirs",
    ),
    *("rename", "replace", "unlink", "rmdir", "removedirs", "touch", "symlink_to", "hardlink_to"),
    *("link", "symlink", "truncate", "chmod", "copy", "copyfile", "copytree", "move", "rmtree"),
    *("NamedTemporaryFile", "TemporaryDirectory", "mkdtemp", "mkstemp", "ZipFile", "extractall"),
    *("save_pretrained", "save", "dump", "tofile", "savez", "open", "fdopen"),
}


def writes(path: Path) -> set[str]:
    """Names of the calls in a source that may write to a file system."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name):
            name, owner = called.id, ""
        elif isinstance(called, ast.Attribute):
            name, owner = called.attr, ast.unparse(called.value)
        else:
            continue
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        modes = [t for t in texts if isinstance(t, str) and set(t) <= set("rwaxbt+U")]
        if name not in WRITES or (name == "open" and not any(set(m) & set("wax+") for m in modes)):
            continue
        if name == "save" and not re.search("torch|export|onnx|np|numpy|[Ii]mage", owner):
            continue  # of ours, which are looked into
        if name == "ZipFile" and not any(set(m) & set("wax") for m in modes):
            continue
        on_text = name in ("replace", "copy") and (len(node.args) != 1 or owner == "copy")
        on_values = name in ("replace", "copy", "link") and owner not in ("os", "shutil", "path")
        if not on_text and not on_values:
            found.add(name)
    return found


def test_nothing_is_written_elsewhere() -> None:
    """All that reaches a disk goes through `fisopt.files`."""
    package = Path(fisopt.__file__).parent
    own = {Path(m.__file__ or "") for m in (files, staging, renames)}
    found = {
        str(path.relative_to(package)): calls
        for path in sorted(package.rglob("*.py"))
        if path not in own and (calls := writes(path))
    }
    assert writes(Path(staging.__file__)) >= {"mkdir", "rename", "unlink", "rmtree"}
    assert found == OUTSIDE
