"""Captures on the disk: read where nothing differs, made where anything that decides them does."""

from __future__ import annotations

import enum
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional

import fisopt
from fisopt import ModelSpec
from fisopt.codegen import cache_tag as tags
from fisopt.rewrite.outline import structure
from fisopt.rewrite.tracing.follow import Followed
from fisopt.rewrite.tracing.frame_dims import Growth
from fisopt.rewrite.tracing.kept import Found
from fisopt.runtime.disk import on_disk, sources, state_digest
from fisopt.runtime.disk.folder import Folder, captures
from tests.runtime.disk import model as written
from tests.runtime.disk.model import Block, OtherProcessor, Small, doubled, inputs, small

SPEC = ModelSpec(blocks=("blocks.*",), grid=written.grid)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Where captures are kept."""
    folder = Folder(tmp_path / "captures")
    monkeypatch.setattr(on_disk, "captures", lambda: folder)
    return folder


def captured(model: nn.Module, spec: ModelSpec = SPEC) -> fisopt.Program:
    return fisopt.capture(model, inputs(), spec)


def is_read(program: fisopt.Program) -> bool:
    """Whether it was on the disk."""
    return program.source.tracer.traces == 0


def assert_same(program: fisopt.Program, model: nn.Module) -> None:
    """A Program is its model as it is now."""
    torch.testing.assert_close(program(**inputs()), model(**inputs()))


def test_a_second_start_reads_what_the_first_has_made(folder: Folder) -> None:
    first, model = captured(small()), small()
    second = captured(model)
    assert not is_read(first)
    assert is_read(second)
    assert not second.source.notes
    assert structure(second.graph) == structure(first.graph)
    assert second.graph_module.code == first.graph_module.code
    for name, callee in first.graph_module.named_children():
        if isinstance(callee, torch.fx.GraphModule):
            other = second.graph_module.get_submodule(name)
            assert structure(other.graph) == structure(callee.graph)  # type: ignore[arg-type]
    assert_same(second, model)


def test_weights_are_those_of_the_live_model(folder: Folder) -> None:
    captured(small())
    model = small()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    program = captured(model)
    assert is_read(program)
    assert_same(program, model)
    model.blocks[0].mlp.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    model.positions.mul_(3)  # held by the model, no weight of it: its place is stored
    assert_same(program, model)
    assert not any("weight" in str(v) for v in _data(folder)["constants"].values())


def _data(folder: Folder) -> Any:
    held = [json.loads(path.read_text()[64:]) for _, _, path in folder.files()]
    return next(each for each in held if "graph" in each)


def test_passes_and_other_shapes_work_on_what_was_read(folder: Folder) -> None:
    passes = [fisopt.FrameInterleave(stride=2)]
    first = captured(small())
    longer = first.at(inputs(7))
    model = small()
    second = captured(model)
    assert is_read(second)
    again = second.at(inputs(7))
    assert is_read(again)
    assert structure(again.graph) == structure(longer.graph)
    torch.testing.assert_close(again(**inputs(7)), model(**inputs(7)))
    results = [
        fisopt.optimize(program, passes, backend="eager")(**inputs()) for program in (first, second)
    ]
    torch.testing.assert_close(*results)


def test_the_runtime_reads_it_too(folder: Folder) -> None:
    expected = fisopt.optimize(small(), [], spec=SPEC, backend="eager")(**inputs())
    optimized = fisopt.optimize(small(), [], spec=SPEC, backend="eager")
    torch.testing.assert_close(optimized(**inputs()), expected)
    assert is_read(optimized.program(inputs()))


def _set(holder: Any, name: str, value: Any) -> Callable[[Small, pytest.MonkeyPatch], None]:
    return lambda _, patch: patch.setattr(holder, name, value)


def _blocks(change: Callable[[Any], object]) -> Callable[[Small, pytest.MonkeyPatch], None]:
    return lambda model, _: [change(block) for block in model.blocks] and None


class Mode(enum.Enum):
    FIRST = 1.0
    SECOND = 2.0


class Renumbered(enum.Enum):
    FIRST = 1.5


Renumbered.__qualname__ = Mode.__qualname__


def _by_mode(mode: Any, x: torch.Tensor) -> torch.Tensor:
    return x * mode.value


def _of_environment(x: torch.Tensor) -> torch.Tensor:
    return x * float(os.environ.get("SCALE_OF_TESTS", "2"))


def _closed_over(model: Small, _: pytest.MonkeyPatch) -> None:
    for block in model.blocks:
        block.rule = written.scaled_by(-1.0)


def _hooked(model: Small, _: pytest.MonkeyPatch) -> None:
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, __, out: out * 2)


def _of_default(x: torch.Tensor, scale: float = 7.0) -> torch.Tensor:
    return x * scale


CHANGES: dict[str, Callable[[Small, pytest.MonkeyPatch], None]] = {
    "a function that forward calls by name": _set(written, "helper", doubled),
    "a function that this one calls": _set(written, "inner", doubled),
    "a number that a function reads by name": _set(written, "factor", 4.0),
    "an attribute of a module that forward reads": _set(written.elsewhere, "bias", 9.0),
    "what a function closes over": _closed_over,
    "the default of an argument": _blocks(lambda b: setattr(b, "rule", _of_default)),
    "an argument that is bound": _blocks(lambda b: setattr(b, "rule", partial(torch.mul, other=5))),
    "an enumeration": _blocks(lambda b: setattr(b, "rule", partial(_by_mode, Mode.SECOND))),
    "what a processor holds": _blocks(lambda b: setattr(b.processor, "strength", 8.0)),
    "the class of a processor": _blocks(lambda b: setattr(b, "processor", OtherProcessor(0.5))),
    "a method that is looked up by a name made at the call": _set(
        Block, "do_plain", lambda self, x: -x
    ),
    "which method that is": _blocks(lambda b: setattr(b, "kind", "signed")),
    "a method of a processor": _set(
        written.Processor, "__call__", lambda self, x: x + self.strength
    ),
    "an entry of a list": _blocks(lambda b: b.numbers.__setitem__(1, -3.0)),
    "data of a class": _set(Block, "shared", {"offset": -0.5}),
    "a hook of a layer": _hooked,
    "a function of torch": _set(functional, "silu", doubled),
    "a layer": _blocks(lambda b: setattr(b, "mlp", nn.Sequential(b.mlp, nn.Tanh()))),
    "the type of a layer": _blocks(lambda b: setattr(b, "mlp", nn.Identity())),
    "the bias of a layer": _blocks(lambda b: setattr(b.mlp, "bias", None)),
    "how often a layer is there": lambda m, _: m.blocks.append(m.blocks[0]) and None,
    "the order of layers": lambda m, _: setattr(
        m, "blocks", nn.ModuleList([m.blocks[1], m.blocks[0]])
    ),
    "weights that are one": lambda m, _: setattr(m.blocks[1].mlp, "weight", m.blocks[0].mlp.weight),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_a_capture_is_in_its_key(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, model = captured(small()), small()
    CHANGES[name](model, monkeypatch)
    program = captured(model)
    assert not is_read(program)
    assert_same(program, model)
    assert first.source.model is not model


def _beside(self: nn.Module) -> object:
    return self, generator


generator = torch.Generator()
mark = object()


def test_a_method_that_a_library_adds_to_torchs_module_is_none_of_the_models(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers adds one to nn.Module when it loads weights; what it reads is no matter."""
    monkeypatch.setattr(nn.Module, "added_by_a_library", _beside, raising=False)
    captured(small())
    program = captured(small())
    assert is_read(program)
    assert not program.source.notes
    monkeypatch.setattr(nn.Module, "extra_repr", lambda _: "exchanged")
    assert not is_read(captured(small()))


def test_a_mark_holds_nothing(folder: Folder) -> None:
    def marked() -> nn.Module:
        model = small()
        model.mark = mark  # type: ignore[assignment]
        return model

    captured(marked())
    assert is_read(captured(marked()))
    assert not is_read(captured(small()))


def test_a_shape_that_comes_after_a_change_is_of_the_changed_model(folder: Folder) -> None:
    captured(small()).at(inputs(7))
    model = small()
    program = captured(model)
    for block in model.blocks:
        block.numbers[1] = -3.0
    torch.testing.assert_close(program.at(inputs(7))(**inputs(7)), model(**inputs(7)))


def test_adapters_are_in_the_key_and_their_weights_and_strengths_are_live(folder: Folder) -> None:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["mlp"], init_lora_weights=False)
    captured(small())
    for known in (False, True):
        model = inject_adapter_in_model(config, small(), "one").eval().requires_grad_(False)
        program = captured(model)
        assert is_read(program) is known
        assert_same(program, model)
    for block in model.blocks:
        block.mlp.scaling["one"] = 0.25
    assert_same(program, model)


def test_what_is_said_of_a_capture_is_said_of_one_that_was_read(folder: Folder) -> None:
    for known in (False, True):
        model = small()
        model.blocks[0].mlp.register_forward_hook(_twice)
        with pytest.warns(UserWarning, match="hooks run on"):
            program = captured(model)
        assert is_read(program) is known
        assert any("hooks run on blocks.0.mlp" in note for note in program.source.notes)
        assert_same(program, model)


def _twice(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
    return out * 2


def test_a_key_without_the_state_of_the_model_would_be_wrong(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: with a digest that sees nothing, what they change is lost."""
    seen = state_digest.StateDigest(small(), SPEC)
    monkeypatch.setattr(on_disk, "StateDigest", lambda *_: seen)
    captured(small())
    for name in ("what a processor holds", "an entry of a list", "a hook of a layer"):
        model = small()
        CHANGES[name](model, monkeypatch)
        program = captured(model)
        assert is_read(program)
        with pytest.raises(AssertionError):
            assert_same(program, model)


def test_types_and_modes_are_in_the_key(folder: Folder) -> None:
    captured(small())
    double = fisopt.capture(small().double(), {"video": inputs()["video"].double()}, SPEC)
    with torch.autocast("cpu", torch.bfloat16):
        cast = captured(small())
    assert not any(map(is_read, (double, cast)))
    assert is_read(captured(small()))


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(blocks=("blocks.0",), grid=written.grid),
        ModelSpec(blocks=("blocks.*",), grid=written.GRID),
        ModelSpec(blocks=("blocks.*",), grid=lambda kwargs: written.grid(kwargs)),
    ],
)
def test_the_spec_is_in_the_key(folder: Folder, spec: ModelSpec) -> None:
    captured(small())
    assert not is_read(captured(small(), spec))


def test_versions_operators_and_own_files_are_in_the_key(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured(small())
    for holder, name, value in (
        (torch, "__version__", "0"),
        (sources, "_own", lambda: "other"),
        (sources, "cache_tag", lambda own: f"{tags.cache_tag(own=own)} and another"),
        (on_disk, "FORM", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            assert not is_read(captured(small())), name
    assert is_read(captured(small()))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "does not hold what was written"),
        (lambda text: "", "does not hold what was written"),
        (lambda text: text.replace("aten.mul.Tensor", "aten.add.Tensor"), "does not hold what"),
        (lambda text: "\0" * len(text), "does not hold what was written"),
    ],
)
def test_a_torn_or_foreign_file_is_made_again(
    folder: Folder, damage: Callable[[str], str], why: str
) -> None:
    captured(small())
    for _, _, path in folder.files():
        path.write_text(damage(path.read_text()))
    model = small()
    program = captured(model)
    assert not is_read(program)
    assert any("made again" in note and why in note for note in program.source.notes)
    assert_same(program, model)
    assert is_read(captured(small()))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("torch.ops.aten.mul.Tensor", "torch.ops.aten.mul_.Tensor", "changes nothing"),
        ("torch.ops.aten.mul.Tensor", "os.system", "no operator"),
        ("blocks.0.mlp.weight", "blocks.0.none.weight", "no weight"),
        ('"call_function","mul"', '"call_function","import os"', "wanted a name"),
        ('"placeholder"', '"call_method"', "of the kind"),
    ],
)
def test_a_file_of_another_writer_runs_nothing(
    folder: Folder, old: str, new: str, why: str
) -> None:
    """Its digest is right, so that its contents are looked at."""
    captured(small())
    for _, _, path in folder.files():
        text = path.read_text()[64:]
        folder.write(path.stem, json.loads(text.replace(old, new)))
    model = small()
    program = captured(model)
    assert any("made again" in note and why in note for note in program.source.notes)
    assert_same(program, model)


def test_the_folder_is_bounded_and_what_was_used_least_recently_goes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, limit=1000)
    for i, key in enumerate("abcd"):
        folder.write(key, "x" * 250)
        os.utime(tmp_path / f"{key}.json", (i, i))
        if key == "c":
            assert folder.read("a") is not None  # is used now
    assert folder.read("a") is not None
    assert folder.read("b") is None
    assert sum(size for _, size, _ in folder.files()) <= 1000


def test_off_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISOPT_CACHE", "off")
    assert captures() is None
    monkeypatch.setenv("FISOPT_CACHE", str(tmp_path))
    assert captures() == Folder(tmp_path / "captures")


def test_the_value_of_an_enumeration_counts(folder: Folder) -> None:
    for mode in (Mode.FIRST, Renumbered.FIRST):
        model = small()
        for block in model.blocks:
            block.rule = partial(_by_mode, mode)
        program = captured(model)
        assert not is_read(program)
        assert_same(program, model)


def test_what_reads_outside_of_the_process_is_not_kept(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in ("2", "3"):
        monkeypatch.setenv("SCALE_OF_TESTS", scale)
        model = small()
        model.blocks[0].rule = _of_environment
        program = captured(model)
        assert any("reads what no key holds (environ)" in note for note in program.source.notes)
        assert_same(program, model)


def test_an_attribute_that_cannot_be_looked_at_stops_nothing(folder: Folder) -> None:
    class Odd(PurePosixPath):
        def __repr__(self) -> str:
            raise KeyError(self.name)

    model = small()
    model.odd = Odd("odd")
    program = captured(model)
    assert any("not kept on the disk: KeyError" in note for note in program.source.notes)
    assert_same(program, model)


def test_what_cannot_be_said_in_words_is_captured_anew_and_said(folder: Folder) -> None:
    model = small()
    model.generator = torch.Generator()
    program = captured(model)
    assert [n for n in program.source.notes if "not kept on the disk" in n and "generator" in n]
    assert not folder.files()
    assert_same(program, model)
    optimized = fisopt.optimize(model, [], inputs(), SPEC, backend="eager")
    assert "not kept on the disk" in str(optimized.report)


def test_a_tensor_that_the_model_holds_in_a_list_is_not_stored(folder: Folder) -> None:
    model = small()
    model.tables = [model.positions]
    del model.positions
    Small.positions = property(lambda self: self.tables[0])  # type: ignore[assignment]
    try:
        program = captured(model)
        assert any("not kept" in n and "no attribute of a layer" in n for n in program.source.notes)
        assert_same(program, model)
    finally:
        del Small.positions


def test_a_table_without_numbers_is_kept_as_its_form(folder: Folder) -> None:
    """Kandinsky 5 makes its frequencies in forward; on the meta device they are a shape alone."""
    model = fisopt.models.build("kandinsky5", num_visual_blocks=1, num_text_blocks=1)
    call = fisopt.models.example_inputs(model, height=64, width=64, num_frames=9)
    first, second = (fisopt.capture(model, call) for _ in range(2))
    assert not [note for note in first.source.notes if "not kept" in note]
    assert is_read(second)
    assert any("lifted" in name for name, x in second.graph_module.named_buffers() if x.is_meta)
    assert structure(second.graph) == structure(first.graph)


PROCESS = """
import torch, fisopt
from model_of_mine import Mine
torch.manual_seed(0)
model = Mine().eval().requires_grad_(False)
video = torch.ones(1, 4, 2, 2, 4)
spec = fisopt.ModelSpec(blocks=("blocks.*",), grid=(4, 2, 2))
program = fisopt.capture(model, {"video": video}, spec)
same = bool(torch.allclose(program(video=video), model(video)))
print(program.source.tracer.traces, same, float(program(video=video).sum()), [*program.source.notes])
"""
SOURCE = """
import importlib
from torch import nn
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x):
        return x + importlib.import_module("parts_of_mine").made(self.linear(x))
import parts_of_mine
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Layer(), Layer()])
    def forward(self, video):
        x = video.flatten(1, 3)
        for block in self.blocks:
            x = block(x)
        return x.reshape(video.shape)
"""


def test_processes_share_captures_and_see_changed_source_files(tmp_path: Path) -> None:
    """Of modules that the model's module imports too, though their functions are found by name."""
    (tmp_path / "model_of_mine.py").write_text(SOURCE)
    results = []
    for factor in (2, 2, 3):
        (tmp_path / "parts_of_mine.py").write_text(f"def made(x):\n    return x * {factor}\n")
        for path in tmp_path.glob("*.py"):
            os.utime(path, (1e9, 1e9))  # the same size and date: what counts is what it holds
        for old in tmp_path.glob("__pycache__/*"):
            old.unlink()
        found = ":".join([str(tmp_path), *sys.path])
        environment = os.environ | {"PYTHONPATH": found, "FISOPT_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(done.stdout.split())
    gc.collect()
    assert [r[:2] for r in results] == [["2", "True"], ["0", "True"], ["2", "True"]]
    assert results[0][2] == results[1][2] != results[2][2]
    assert [r[3] for r in results] == ["[]"] * 3


def test_how_inputs_grow_is_read_as_it_was_written() -> None:
    growths = (Growth(1, 2, plane=(2, 3), scale=2), Growth(-1, 1, True, False, padded=True))
    found = Found(Followed({0: growths[:1], 3: growths[1:]}, 5, 1), ("warns",))
    assert on_disk.found_of(json.loads(json.dumps(on_disk.plain_found(found)))) == found
