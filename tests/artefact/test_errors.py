"""What cannot be exported or loaded is refused with a reason, and leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fisopt
from fisopt import (
    ExportError,
    FrameInterleave,
    InputError,
    OptimizedModule,
    Recipe,
    TokenReduction,
)
from fisopt.artefact import aoti
from fisopt.artefact.export import check_target, export
from fisopt.artefact.loaded import LoadedModule
from fisopt.artefact.loader import read_manifest
from fisopt.artefact.manifest import Manifest
from fisopt.artefact.pt2 import Runner
from fisopt.stored.tree import structure_of
from tests import plain_dit
from tests.artefact.models import GRID, plain
from tests.plain_dit import FORMS


@pytest.fixture
def made() -> OptimizedModule:
    return plain([FrameInterleave()])[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = plain([FrameInterleave()])
    return export(made, tmp_path_factory.mktemp("whole") / "model.pt2", dynamic=False)


@pytest.fixture
def file(original: Path, tmp_path: Path) -> Path:
    """A file of its own for every test that breaks it."""
    return Path(shutil.copy(original, tmp_path))


def test_a_path_that_exists_needs_force(made: OptimizedModule, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"exists; .* force=True \(--force\)"):
        export(made, path, "text")
    assert path.read_text() == "mine"
    export(made, path, "text", force=True)
    assert "aten::" in path.read_text()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("")
    with pytest.raises(ExportError, match=r"holds other things, there is no manifest.json"):
        export(made, folder, "text", force=True)


def test_force_deletes_only_what_export_wrote(made: OptimizedModule, tmp_path: Path) -> None:
    """A manifest of any other kind, files beside ours, folders and links in their place: all stay."""
    written = ["manifest.json", "recipe.yaml", "variant_0.txt"]
    folder = export(made, tmp_path / "model", "text")
    (folder / "variant_0.txt").write_text("changed by hand")
    export(made, folder, "text", force=True)
    assert sorted(p.name for p in folder.iterdir()) == written
    assert "aten::" in (folder / "variant_0.txt").read_text()
    ours = (folder / "manifest.json").read_text()
    for manifest, files, message in (
        ('{"name": "App", "start_url": "/"}', ["data.db"], "is not that of an artefact"),
        ("{}", [], "is not that of an artefact"),
        ("", ["index.html"], "is not that of an artefact"),
        (ours, ["notes.md", "variant_0.txt", "variant_1.txt"], r"notes\.md, variant_1\.txt"),
        (ours.replace("variant_0.txt", "thesis.txt"), ["thesis.txt"], r"artefact thesis\.txt"),
        (ours, ["variant_0.txt/inside"], r"besides the artefact variant_0\.txt"),
        (ours, [".git/HEAD"], r"besides the artefact \.git"),
    ):
        there = tmp_path / "there"
        there.mkdir()
        (there / "manifest.json").write_text(manifest)
        for name in files:
            (there / name).parent.mkdir(exist_ok=True)
            (there / name).write_text("mine")
        with pytest.raises(ExportError, match=f"holds other things, .*{message}"):
            export(made, there, "text", force=True)
        assert (there / "manifest.json").read_text() == manifest
        assert all((there / name).read_text() == "mine" for name in files)
        shutil.rmtree(there)
    (folder / "variant_0.txt").unlink()
    (folder / "variant_0.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match=r"besides the artefact variant_0\.txt"):
        export(made, folder, "text", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_links_are_paths_that_exist(made: OptimizedModule, tmp_path: Path) -> None:
    """A forced export replaces the link; what it points to stays."""
    target = tmp_path / "target.txt"
    for there in (True, False):
        link = tmp_path / f"link{there}.txt"
        link.symlink_to(target if there else tmp_path / "nothing")
        target.write_text("mine")
        with pytest.raises(ExportError, match="exists"):
            export(made, link, "text")
        assert link.is_symlink()
        export(made, link, "text", force=True)
        assert not link.is_symlink()
        assert target.read_text() == "mine"


@pytest.mark.parametrize("suffix", [".pt2", ""])
def test_places_that_take_no_files(suffix: str, tmp_path: Path) -> None:
    """Told before anything is traced, with the path and the system's reason."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    recipe = Recipe.of(torch.nn.Linear(2, 2), [])
    for name, reason in (
        ("a" * 300, "File name too long"),
        ("b" * 300 + "/a", "File name too long"),
        ("file/a", "is no folder that takes files"),
        ("loop/a", "symbolic links|is no folder that takes files"),
        ("dangling/a", "is no folder that takes files"),
        ("a\0b", "null"),
        ("/proc/a", "cannot be written|could not be written"),
    ):
        path = tmp_path / (name + suffix)
        for force in (False, True):
            with pytest.raises(ExportError, match=reason) as raised:
                recipe.save(path, force=force)
            assert str(path) in str(raised.value)
            if not name.startswith("/proc"):  # root may, as far as one can ask beforehand
                with pytest.raises(ExportError, match=reason):
                    check_target(path, "pt2", portable=True, force=force)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "loop"]


def test_a_disk_that_fills_leaves_no_half_file(made: OptimizedModule, tmp_path: Path) -> None:
    """A limit on file sizes fails as a full disk does: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
        for name, form in (("model.pt2", "pt2"), ("model", "pt2"), ("model.txt", "text")):
            with pytest.raises(ExportError, match="could not be written"):
                export(made, tmp_path / name, form, dynamic=False)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_truncated_file(file: Path, kept: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ExportError, match=r"not (a )?complete.* (copy or )?export it again"):
        fisopt.load(file)


def test_a_damaged_file(file: Path) -> None:
    data = bytearray(file.read_bytes())
    where = data.index(b'"graph_module"')
    data[where : where + 64] = bytes(64)
    file.write_bytes(data)
    with pytest.raises(ExportError, match="cannot be loaded"):
        fisopt.load(file)


def test_foreign_files(tmp_path: Path) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    foreign = tmp_path / "foreign.pt2"
    torch.export.save(torch.export.export(Double(), (torch.ones(2),)), foreign)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("foreign.pt2", "no manifest in it"),
        ("text.onnx", "not a complete ONNX or .pt2 file: there is no record at byte 0"),
        ("empty", r"it has no manifest.json"),
        ("nothing", "does not exist"),
    ):
        with pytest.raises(ExportError, match=message):
            fisopt.load(tmp_path / name)


def test_a_manifest_of_another_form(made: OptimizedModule, tmp_path: Path) -> None:
    path = export(made, tmp_path / "model", "text")
    file = path / "manifest.json"
    said = json.loads(file.read_text())
    model, variant = said["model"], said["variants"][0]
    assert said["fixed_sizes"]["frames"] == "files of format 'text' have one size"
    for entries, message in (
        ({"fisopt_artefact": 99}, "artefact of form 99, written by fisopt 0"),
        ({"fisopt_artefact": 99, "versions": []}, "artefact of form 99, written by fisopt unknown"),
        ({"fisopt_artefact": 0}, "artefact of form 0"),
        ({"fisopt_artefact": None}, "artefact of form None"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
        ({"call": []}, "manifest is malformed"),
        ({"call": {**said["call"], "leaves": []}}, "wanted that call has a tensor for every leaf"),
        ({"format": "pickle"}, "wanted that format is one of"),
        ({"model": {**model, "dtype": "load"}}, "wanted that model has a class, a config, a dtype"),
        ({"recipe": {"passes": 3}}, "wanted that recipe has passes"),
        ({"schedule": []}, "wanted that schedule has a variant for each step"),
        ({"schedule": [7]}, "wanted that schedule has a variant for each step"),
        ({"steps": 2}, "wanted that schedule has a variant for each step"),
        ({"variants": [{**variant, "afresh": 7}]}, "wanted that afresh is a variant"),
        ({"variants": [{**variant, "loads": ["m"]}]}, "wanted that state has a tensor"),
        ({"variants": [{**variant, "file": "../v.pt2"}]}, "wanted that file is a name"),
        ({"variants": [{**variant, "file": "/v.pt2"}]}, "wanted that file is a name"),
    ):
        file.write_text(json.dumps({**said, **entries}))
        with pytest.raises(ExportError, match=message):
            fisopt.load(path)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ExportError, match="its manifest cannot be read"):
        fisopt.load(path)
    file.write_text(json.dumps(said))
    with pytest.raises(ExportError, match="cannot be run"):
        fisopt.load(path)


def test_what_cannot_be_exported(made: OptimizedModule, tmp_path: Path) -> None:
    stepwise, _ = plain([TokenReduction(0.6, cache_steps=2)])
    for model, name, options, message in (
        (stepwise, "model", {}, "TokenReduction differs between denoising steps: pass steps="),
        (stepwise, "model", {"steps": 0}, "steps must be at least 1"),
        (stepwise, "model.pt2", {"steps": 4}, "3 variants, and one file holds only one"),
        (made, "model.bin", {}, r"ends in '.pt2'"),
        (made, "model.onnx", {}, r"for this one pass format='onnx' \(--format onnx\)"),
        (
            made,
            "model.onnx",
            {"format": "onnx", "portable": False},
            "ONNX has no operators of fisopt",
        ),
        (made.original, "model.pt2", {}, "got a PlainDiT; pass what fisopt.optimize returned"),
    ):
        with pytest.raises(ExportError, match=message):
            export(model, tmp_path / name, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format must be one of"):
        export(made, tmp_path / "model.pt2", "torchscript")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_shapes_that_are_not_known(made: OptimizedModule, tmp_path: Path) -> None:
    again = fisopt.optimize(made, [], backend="eager")
    with pytest.raises(ExportError, match="no call was made yet"):
        export(again, tmp_path / "model.pt2")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    model = fisopt.models.build("wan2.1-1.3b", num_layers=1)
    inputs = fisopt.models.example_inputs("wan2.1-1.3b", height=32, width=32, num_frames=9)
    made = fisopt.optimize(model, [FrameInterleave(blocks=":")], inputs, backend="eager")
    with pytest.raises(ExportError, match=r"meta device and has no weights .* format='text'"):
        export(made, tmp_path / "model.pt2")
    text = export(made, tmp_path / "model.txt", "text").read_text()
    assert text.startswith("# WanTransformer3DModel, 3x2x2 tokens, float32\n")
    assert "# passes: FrameInterleave\n" in text
    assert "aten::scaled_dot_product_attention(" in text
    assert "fisopt::" not in text


def module_of(manifest: Manifest, runners: Mapping[int, Runner] | None = None) -> LoadedModule:
    """A loaded module without its weights."""
    output = structure_of(manifest.call.output)
    return LoadedModule(manifest, runners or {}, {}, lambda: None, output)


def test_every_runner_gets_contiguous_tensors(original: Path) -> None:
    """A package of AOTInductor reads past the end of others, such as an expanded timestep."""
    manifest, _ = read_manifest(original)
    got: dict[str, torch.Tensor] = {}

    def run(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        got.update(values)
        return [values["video"]]

    loaded = module_of(manifest, {0: run})
    inputs = plain_dit.inputs(FORMS["text_in_front"], *GRID, batch=2)
    inputs["time"] = torch.tensor(0.5).expand(2)
    inputs["text"] = inputs["text"].transpose(1, 2).contiguous().transpose(1, 2)
    loaded(**inputs)
    assert not any(inputs[name].is_contiguous() for name in ("time", "text"))
    for name, value in inputs.items():
        assert torch.equal(got[name], value)
        assert got[name].is_contiguous()


def test_a_loaded_module_stays_where_it_was_exported(original: Path) -> None:
    loaded = module_of(read_manifest(original)[0])
    assert loaded.to("cpu", torch.float32).float().cpu() is loaded
    for change in (loaded.half, lambda: loaded.to(torch.bfloat16), lambda: loaded.to("meta")):
        with pytest.raises(
            InputError, match=r"keeps the dtype and device of its export: .*float32 on cpu"
        ):
            change()
    onnx = replace(loaded.manifest, format="onnx")
    assert module_of(onnx).to("meta").device == torch.device("cpu")


def test_what_is_not_installed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = __import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("onnx", "onnxscript", "onnxruntime"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    monkeypatch.setattr("builtins.__import__", without)
    with pytest.raises(ExportError, match=r"pip install 'fisopt\[onnx\]'"):
        fisopt.load(tmp_path / "model.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(aoti, "has_compiler", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program = torch.export.load(file)
    with pytest.raises(ExportError, match=r"no C\+\+ compiler"):
        aoti.write(program, tmp_path / "aoti.pt2")


@pytest.mark.parametrize("part", ["every weight", "one buffer"])
def test_bfloat16_is_refused_for_onnx_before_anything_is_captured(
    part: str, tmp_path: Path
) -> None:
    """`onnxruntime` has no kernels for it."""
    dtype = torch.bfloat16 if part == "every weight" else torch.float32
    model = fisopt.models.build("wan2.1-1.3b", dtype=dtype, num_layers=1)
    if part == "one buffer":
        model.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16))
    made = fisopt.optimize(model, backend="eager")
    with pytest.raises(ExportError, match=r"in bfloat16 \(.*\), .*onnxruntime.*torch\.float32"):
        export(made, tmp_path / "a.onnx", "onnx", example_inputs={})
    assert not list(tmp_path.iterdir())
