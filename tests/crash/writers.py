"""What fisopt writes, in two versions each, and how to tell which of the two is there."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fisopt
from fisopt import FrameInterleave, MaskTable, Recipe, Schedule, TileAttention, TokenReduction
from fisopt.artefact import onnx
from fisopt.codegen import choose
from fisopt.codegen.emit import cache
from fisopt.errors import FileError
from fisopt.runtime import captures
from tests import plain_dit
from tests.conftest import plain_captured

GRID = (5, 2, 3)


@dataclass(frozen=True)
class Writer:
    """One kind of file or folder.

    Attributes:
        name: of the kind.
        path: where it is, in a folder of its own.
        write: writes version 0 or 1 over what is there.
        read: which version is there, by all that it holds; raises if it is none.
        files: names that may be in the folder.
    """

    name: str
    path: Path
    write: Callable[[int], object]
    read: Callable[[], int]
    files: tuple[str, ...]


def _version(found: Any, versions: tuple[Any, Any]) -> int:
    """Which of two versions something equals.

    Raises:
        ValueError: neither; it is mixed.
    """
    return versions.index(found)


def schedules(folder: Path) -> Writer:
    """Tiers and thresholds that differ, of a size at which a kill may come between two writes."""
    made = tuple(
        Schedule(
            tuple(tuple((b + s + v) % 9 for s in range(20)) for b in range(12)),
            tuple(tuple((b * s + v) % 9 for s in range(20)) for b in range(12)),
            ((3 + v, 0.5),),
            ((5 + v, 0.25 + v / 4),),
        )
        for v in range(2)
    )
    path = folder / "s.yaml"
    return Writer(
        "schedule",
        path,
        lambda v: made[v].save(path, {"measured": torch.full((12, 20, 11), float(v))}),
        lambda: _version(Schedule.load(path), (made[0], made[1])),
        ("s.yaml", "s.safetensors"),
    )


def mask_tables(folder: Path) -> Writer:
    """Masks of forty blocks."""
    made = tuple(MaskTable({f"blocks.{i}": 1 + i % 7 + v for i in range(40)}) for v in range(2))
    path = folder / "m.json"
    read = lambda: _version(MaskTable.load(path), (made[0], made[1]))  # noqa: E731
    return Writer("mask table", path, lambda v: made[v].save(path), read, ("m.json",))


def recipes(folder: Path) -> Writer:
    """A schedule and a mask table in each."""
    model = plain_dit.build(plain_dit.FORMS["fused"])
    made = tuple(
        Recipe.of(
            model,
            [
                TokenReduction(schedule=Schedule(((1, 4 + v),), ((0, 5),), ((3, 0.5),), ())),
                TileAttention(table=MaskTable({"layers.0": 2 + v})),
            ],
        )
        for v in range(2)
    )
    path = folder / "r.yaml"
    return Writer(
        "recipe",
        path,
        lambda v: made[v].save(path, force=True),
        lambda: _version(Recipe.load(path), (made[0], made[1])),
        ("r.yaml",),
    )


def kernels(folder: Path) -> Writer:
    """A source in the cache of kernels, of another content than its name promised before."""
    texts = tuple(f"# {v}\n" * 20_000 for v in range(2))
    path = folder / "k.py"
    return Writer(
        "kernel cache",
        path,
        lambda v: cache.write(path, texts[v]) or _unwritten(path),
        lambda: _version(path.read_text(), (texts[0], texts[1])),
        ("k.py",),
    )


def choices(folder: Path) -> Writer:
    """Timings that are remembered, all or none."""
    path = folder / "choices.json"
    versions = tuple(
        {"reference": 1.0, **{f"emitted {i}": float(v) for i in range(300)}} for v in range(2)
    )

    def write(v: int) -> None:
        choose.remember(path, "class", versions[v])
        if choose._UNKEPT.pop(path, None):
            _unwritten(path)

    def read() -> int:
        return _version(choose.remembered(path)["class"], (versions[0], versions[1]))

    return Writer("choices cache", path, write, read, ("choices.json",))


def texts(folder: Path) -> Writer:
    """A folder of text: manifest, recipe and graph, all of one of two lists of passes."""
    original, program = plain_captured(plain_dit.FORMS["fused"])
    inputs = plain_dit.inputs(plain_dit.FORMS["fused"], *GRID, batch=2)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=GRID)
    with _captured(program):
        modules = [
            fisopt.optimize(original, passes, inputs, spec, "eager")
            for passes in ([], [FrameInterleave()])
        ]
    path = folder / "folder"

    def write(v: int) -> None:
        fisopt.export(modules[v], path, "text", example_inputs=inputs, force=True)

    def held() -> dict[str, str]:
        return {file.name: file.read_text() for file in path.iterdir()}

    versions = []
    for v in range(2):
        write(v)
        versions.append(held())
    return Writer(
        "export text",
        path,
        write,
        lambda: _version(held(), (versions[0], versions[1])),
        ("folder",),
    )


@contextmanager
def _captured(program: Any) -> Iterator[None]:
    """Every model is captured already."""
    real = captures.capture
    captures.capture = lambda *_: program  # type: ignore[assignment]
    try:
        yield
    finally:
        captures.capture = real


def _unwritten(path: Path) -> None:
    """The cache does without the file, and says so; here that is an error like any other."""
    raise FileError(f"{path} was not written")


def exports(folder: Path, name: str, form: Any) -> Writer:
    """An artefact of one of two models; what it computes tells which, to the bit."""
    original, program = plain_captured(plain_dit.FORMS["fused"])
    inputs = plain_dit.inputs(plain_dit.FORMS["fused"], *GRID, batch=2)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=GRID)
    modules, wanted = [], []
    with _captured(program):
        for v in range(2):
            model = copy.deepcopy(original)
            with torch.no_grad():
                next(model.parameters()).mul_(1 + v)
            passes = [FrameInterleave(dense_steps=(0,))] if "." not in name else []
            modules.append(fisopt.optimize(model, passes, inputs, spec, "eager"))
    path = folder / name
    options: dict[str, Any] = {"dynamic": False, "force": True}
    if "." not in name:
        options["steps"] = 2

    def write(v: int) -> None:
        fisopt.export(modules[v], path, form, example_inputs=inputs, **options)

    def outputs(module: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            if "." in name:
                return [module(**inputs)["video"]]
            with module.generation(2):
                return [module(**inputs)["video"] for _ in range(2)]

    def read() -> int:
        got = outputs(fisopt.load(path))
        for v in range(2):
            if not wanted[v:]:
                wanted.append(outputs(modules[v]))
            pairs = zip(got, wanted[v], strict=True)
            if all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs):
                return v
        raise ValueError("it computes what neither version does")

    data = [f"{name}.data", f"{name}.1.data"] if form == "onnx" else []
    return Writer(f"export {name}", path, write, read, (name, *data))


def small(folder: Path) -> list[Writer]:
    """The kinds that are written in milliseconds."""
    made = []
    for make in (schedules, mask_tables, recipes, kernels, choices):
        (folder / make.__name__).mkdir(parents=True)
        made.append(make(folder / make.__name__))
    return made


def large(folder: Path) -> list[Writer]:
    """Artefacts: a file of torch.export, a folder, ONNX with weights inside and beside."""
    made = []
    for name, form in (("a.pt2", "pt2"), ("folder", "pt2"), ("a.onnx", "onnx")):
        (folder / f"of {name}").mkdir(parents=True)
        made.append(exports(folder / f"of {name}", name, form))
    (folder / "beside").mkdir()
    beside = exports(folder / "beside", "b.onnx", "onnx")

    def write(v: int) -> None:
        held, onnx.EXTERNAL_BYTES = onnx.EXTERNAL_BYTES, 1
        try:
            beside.write(v)
        finally:
            onnx.EXTERNAL_BYTES = held

    return [*made, Writer("export b.onnx, data", beside.path, write, beside.read, beside.files)]


def left_over(writer: Writer) -> list[str]:
    """What is in a writer's folder that does not belong there; for a set of files also too many."""
    found = os.listdir(writer.path.parent)
    data = [name for name in found if name.endswith(".data")]
    return [n for n in found if n not in writer.files] + data[1:]
