"""What fisopt writes, in two versions each, and how to tell which of the two is there."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnx as onnx_package
import torch

import fisopt
from fisopt import FrameInterleave, MaskTable, Recipe, Schedule, TileAttention, TokenReduction
from fisopt.artefact import export, onnx
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


class Memo:
    """What an export computes before it writes, remembered for each version and call."""

    def __init__(self) -> None:
        self.version, self.known = 0, dict[Any, Any]()
        self.calls: Counter[str] = Counter()

    def begin(self, version: int) -> None:
        """Begin an export."""
        self.version = version
        self.calls.clear()

    def of(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A function that computes once for each version and call."""
        name = real.__name__

        def call(*args: Any, **kwargs: Any) -> Any:
            key = (name, self.version, self.calls[name])
            self.calls[name] += 1
            if key not in self.known:
                self.known[key] = real(*args, **kwargs)
            return self.known[key]

        return call


def exports(folder: Path, name: str, form: Any, external: int = 2 << 30) -> Writer:
    """An artefact of one of two models; every byte tells which.

    Tracing and translating are done once: what is killed is the writing.
    """
    original, program = plain_captured(plain_dit.FORMS["fused"])
    inputs = plain_dit.inputs(plain_dit.FORMS["fused"], *GRID, batch=2)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=GRID)
    several, memo, modules = "." not in name, Memo(), []
    passes = [FrameInterleave(steps="1:")] if several else []
    doubled = copy.deepcopy(original)
    with torch.no_grad():
        for weight in doubled.parameters():
            weight.mul_(2)
    another = fisopt.capture(doubled, inputs, spec)
    for model, captured in ((original, program), (doubled, another)):
        with _captured(captured):
            modules.append(fisopt.optimize(model, passes, inputs, spec, "eager"))
    path = folder / name
    options: dict[str, Any] = {"dynamic": False, "steps": 2 if several else None}

    def write(v: int) -> None:
        memo.begin(v)
        with ExitStack() as patched:
            for where, what in REMEMBERED:
                real = getattr(where, what)
                patched.enter_context(mock.patch.object(where, what, memo.of(real)))
            patched.enter_context(mock.patch.object(onnx, "EXTERNAL_BYTES", external))
            fisopt.export(modules[v], path, form, example_inputs=inputs, force=True, **options)

    versions: list[dict[str, bytes]] = []
    for v in range(2):
        write(v)
        versions.append(_contents(path))
    assert versions[0] != versions[1]
    data = [f"{name}.data", f"{name}.1.data"] if external == 1 else []
    return Writer(
        f"export {name}",
        path,
        write,
        lambda: _version(_contents(path), (versions[0], versions[1])),
        (name, *data),
    )


REMEMBERED = (
    *((export, "exports_of"), (export, "_opened"), (export, "describe"), (export, "exported")),
    (onnx, "convert"),
)


def _contents(path: Path) -> dict[str, bytes]:
    """Every byte of an artefact; the name of a file of weights beside it does not count."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    found = {"": path.read_bytes()}
    if path.suffix == ".onnx":
        model, data = onnx_package.load(path, load_external_data=False), set()
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    data.add(entry.value)
                    entry.value = "data"
        found = {"": model.SerializeToString(deterministic=True)}
        assert len(data) <= 1
        if data:
            found["data"] = (path.parent / data.pop()).read_bytes()
    return found


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
    for name, form, external in (
        ("a.pt2", "pt2", 0),
        ("folder", "pt2", 0),
        ("a.onnx", "onnx", 2 << 30),
        ("beside.onnx", "onnx", 1),
    ):
        (folder / f"of {name}").mkdir(parents=True)
        made.append(exports(folder / f"of {name}", name, form, external))
    return made


def left_over(writer: Writer) -> list[str]:
    """What is in a writer's folder that does not belong there; for a set of files also too many."""
    found = os.listdir(writer.path.parent)
    data = [name for name in found if name.endswith(".data")]
    return [n for n in found if n not in writer.files] + data[1:]
