"""An artefact is what its manifest says, and holds data unless its reader trusts it with more."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fisopt
from fisopt import ExportError, FrameInterleave
from fisopt.artefact.digests import EXTRA
from fisopt.artefact.loader import examined, read_manifest
from fisopt.artefact.manifest import Manifest
from fisopt.cli import app
from fisopt.errors import OptionError
from tests.artefact.models import plain
from tests.hostile.archives import GRAPH, ROOT, manifest_in, packed, parts_of

pytestmark = pytest.mark.xdist_group("exported")  # captured in one process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = plain([FrameInterleave()])
    return fisopt.export(made, tmp_path_factory.mktemp("whole") / "a.pt2", dynamic=False)


@pytest.fixture(scope="module")
def stepwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = plain([FrameInterleave(steps="1:")])
    return fisopt.export(made, tmp_path_factory.mktemp("folder") / "a", steps=2, dynamic=False)


def rewritten(path: Path, parts: dict[str, bytes]) -> Path:
    """The parts in an archive whose manifest is as it was."""
    with zipfile.ZipFile(path, "w") as made:
        for name, data in parts.items():
            made.writestr(ROOT + name, data)
    return path


def test_every_part_has_a_digest(whole: Path) -> None:
    manifest, _ = read_manifest(whole)
    assert set(manifest.variants[0].parts) == parts_of(whole).keys() - {EXTRA}
    assert Manifest.read(manifest.text(), "here") == manifest
    assert not any(data[:2] == b"\x80\x02" for data in parts_of(whole).values()), "no pickles"
    assert parts_of(whole)["data/sample_inputs/model.pt"] == b""


@pytest.mark.parametrize("name", ["data/weights/weight_5", GRAPH, "byteorder"])
def test_a_part_that_was_changed(name: str, whole: Path, tmp_path: Path) -> None:
    parts = parts_of(whole)
    parts[name] = bytes(len(parts[name]))
    path = rewritten(tmp_path / "a.pt2", parts)
    with pytest.raises(ExportError, match=r"a\.pt2: its part .* is not what the manifest says"):
        fisopt.load(path)
    if "weight" in name:
        assert float(fisopt.load(path, check="none").variant_0.weight_5.abs().max()) == 0  # type: ignore[union-attr, operator]


def test_parts_that_are_missing_or_more(whole: Path, tmp_path: Path) -> None:
    for change, message in (
        (lambda parts: parts.pop("data/weights/weight_5"), "'data/weights/weight_5' is missing"),
        (lambda parts: parts.update({"data/weights/weight_99": b""}), "is not in the manifest"),
    ):
        parts = parts_of(whole)
        change(parts)
        with pytest.raises(ExportError, match=message):
            fisopt.load(rewritten(tmp_path / "a.pt2", parts))


def test_a_flipped_byte_anywhere(whole: Path, tmp_path: Path) -> None:
    """In a part, in its name, in the archive's directory or in the manifest."""
    data, path = bytearray(whole.read_bytes()), tmp_path / "a.pt2"
    inert = 0
    for place in range(7, len(data), len(data) // 60):
        data[place] ^= 0x10
        path.write_bytes(data)
        with contextlib.suppress(ExportError):
            fisopt.load(path)
            inert += 1  # what lies between the parts, and times of the archive
        data[place] ^= 0x10
    assert inert < 15


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "another config hash": (
        lambda said: said["model"].update(config_sha256="0" * 64),
        "config_sha256 is that of the model's config",
    ),
    "a false result shape": (
        lambda said: said["call"]["results"][0].update(shape=[2, 30, 7]),
        r"output is .*, the manifest says \[2, 30, 7\]",
    ),
    "a false input type": (
        lambda said: said["call"]["tensors"][0].update(dtype="float64"),
        "video is .*, the manifest says .*float64",
    ),
    "another input": (
        lambda said: said["call"]["tensors"][0].update(name="other"),
        "takes .*, the manifest says .*'other'",
    ),
    "more results": (
        lambda said: said["variants"][0].update(stores=["a", "b"]),
        "returns 1 tensors, the manifest says 3",
    ),
    "no frames": (
        lambda said: said["call"]["tensors"][0].update(shape=[2, "0*frames", 6]),
        "shape is numbers or products",
    ),
    "frames to no end": (
        lambda said: said["call"]["tensors"][0].update(shape=[2, "9" * 4_000 + "*frames", 6]),
        "shape is numbers or products",
    ),
    "a size that is a word": (
        lambda said: said["call"]["tensors"][0].update(shape=[2, "batch", 6]),
        "shape is numbers or products",
    ),
    "a nesting of another size": (
        lambda said: said["call"].update(
            output='[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'
        ),
        "wanted a nesting of",
    ),
    "a nesting without end": (
        lambda said: said["call"].update(output="[1, " + "[" * 100_000),
        "nesting of values is malformed",
    ),
    "a device": (lambda said: said["model"].update(device="cpu; ls"), "a dtype and a device"),
    "a type": (lambda said: said.update(steps="3"), r"manifest\.steps is '3'"),
    "a flag": (lambda said: said.update(portable="no"), r"manifest\.portable is 'no'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_does_not_fit(name: str, whole: Path, tmp_path: Path) -> None:
    """With a digest that does."""
    change, message = CHANGES[name]
    parts = parts_of(whole)
    manifest = manifest_in(parts)
    change(manifest)
    path = packed(tmp_path / "a.pt2", parts, manifest)
    with pytest.raises(ExportError, match=message):
        fisopt.load(path)


def test_a_manifest_that_was_changed(stepwise: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    shutil.copytree(stepwise, path)
    file = path / "manifest.json"
    said = json.loads(file.read_text())
    for change, message in (
        ({"seeds": {"FrameInterleave": 3}}, "the manifest was changed after it was written"),
        ({"sha256": "0" * 64}, "the manifest was changed after it was written"),
        ({"sha256": None}, "the manifest has no digest"),
        ({"fisopt_artefact": 1, "sha256": None}, "the manifest has no digest"),
    ):
        file.write_text(json.dumps({**said, **change}))
        with pytest.raises(ExportError, match=message + r".*check='none' \(--check none\)"):
            fisopt.load(path)
        assert fisopt.load(path, check="none").manifest.steps == 2


def test_a_folder_is_of_one_export(stepwise: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    shutil.copytree(stepwise, path)
    (path / "recipe.yaml").write_text("passes: []")
    with pytest.raises(ExportError, match=r"its part 'recipe.yaml' is not what the manifest says"):
        fisopt.load(path)
    shutil.copy(stepwise / "recipe.yaml", path)
    shutil.copy(path / "variant_0.pt2", path / "variant_1.pt2")
    with pytest.raises(ExportError, match=r"variant_1\.pt2: its part .* is not what"):
        fisopt.load(path)
    with pytest.raises(ExportError, match=r"is one of 2 variants; load its folder"):
        fisopt.load(stepwise / "variant_1.pt2")


def test_a_manifest_that_would_grow(whole: Path, tmp_path: Path) -> None:
    """Its size is read before it is unpacked; a compressed one is not unpacked at all."""
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(ROOT + EXTRA, bytes(80 << 20))
    with pytest.raises(ExportError, match=f"the entry '{ROOT}{EXTRA}', which is not stored"):
        fisopt.load(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(ROOT + EXTRA, bytes(65 << 20))
    with pytest.raises(ExportError, match=f"{EXTRA} has 68,157,440 bytes, wanted at most"):
        fisopt.load(path)


def test_entries_that_lie_over_each_other(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as held:
        first, second = held.infolist()[5:7]
    old = second.header_offset.to_bytes(4, "little") + second.filename.encode()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, first.header_offset.to_bytes(4, "little") + old[4:]))
    with pytest.raises(ExportError, match="lies over another"):
        fisopt.load(path)


def test_native_code_needs_a_word(whole: Path, tmp_path: Path) -> None:
    parts = parts_of(whole)
    path = packed(tmp_path / "a.pt2", parts, {**manifest_in(parts), "format": "aoti"})
    with pytest.raises(ExportError, match=r"native code: .* trust='code' \(--trust code\)"):
        fisopt.load(path)
    assert examined(path, trust="code").manifest.format == "aoti"
    for options, message in (
        ({"trust": "all"}, "trust must be one of"),
        ({"trust": True}, "trust must be one of"),
        ({"check": "no"}, "check must be one of"),
    ):
        with pytest.raises(OptionError, match=message):
            fisopt.load(path, **options)  # type: ignore[arg-type]


def test_operators_of_other_libraries_need_a_word(whole: Path, tmp_path: Path) -> None:
    library = torch.library.Library("theirs", "DEF")
    library.define("same(Tensor x) -> Tensor")
    parts = parts_of(whole)
    said = json.loads(parts[GRAPH])
    node = next(n for n in said["graph_module"]["graph"]["nodes"] if "gelu" in n["target"])
    node["target"] = "torch.ops.theirs.same.default"
    node["inputs"] = [{**node["inputs"][0], "name": "x"}]
    parts[GRAPH] = json.dumps(said).encode()
    path = packed(tmp_path / "a.pt2", parts, manifest_in(parts))
    with pytest.raises(ExportError, match="an operator of 'theirs'; data calls those of aten"):
        fisopt.load(path)
    assert fisopt.load(path, trust="code").manifest.format == "pt2"
    node["target"] = "torch.ops.theirs.other.default"
    parts[GRAPH] = json.dumps(said).encode()
    path = packed(tmp_path / "b.pt2", parts, manifest_in(parts))
    with pytest.raises(ExportError, match=r"'torch.ops.theirs.other.default', which is not there"):
        fisopt.load(path, trust="code")


def test_verify(whole: Path, stepwise: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["verify", str(whole), str(stepwise)])
    assert done.exit_code == 0
    assert "parts of pt2 as written, data" in done.output
    assert "2 variants over 2 steps" in done.output
    bad = Path(shutil.copy(whole, tmp_path / "bad.pt2"))
    data = bytearray(bad.read_bytes())
    data[data.index(b'"graph_module"') + 3] ^= 1
    bad.write_bytes(data)
    done = run(app, ["verify", str(bad), str(whole)])
    assert done.exit_code == 1
    assert "parts of pt2 as written, data" in done.output, "the others are looked at too"
    parts = parts_of(whole)
    native = packed(tmp_path / "n.pt2", parts, {**manifest_in(parts), "format": "aoti"})
    assert run(app, ["verify", str(native)]).exit_code == 1
    done = run(app, ["verify", str(native), "--trust", "code"])
    assert done.exit_code == 0
    assert "native code" in done.output
    assert run(app, ["verify", str(tmp_path / "none")]).exit_code == 1
