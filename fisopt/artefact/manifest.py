"""The manifest: what an artefact is, in JSON, for the loader and for any other reader."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from fisopt.errors import ExportError, shown
from fisopt.reading import MalformedError, is_name, json_value
from fisopt.recipe.identity import digest

FORMAT = 2
"""The newest form of manifest that this version reads; the first has no digests."""
FILE = "manifest.json"
"""Its name in a folder."""
RECIPE = "recipe.yaml"
"""Name of the recipe in a folder."""
ENTRY = "fisopt.json"
"""Its name inside a file."""
Format = Literal["pt2", "onnx", "aoti", "text"]
FORMATS: tuple[Format, ...] = ("pt2", "onnx", "aoti", "text")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that a variant takes or returns.

    Attributes:
        name: as the graph calls it.
        shape: its sizes; an open size is an expression in the open sizes, like ``"2*height"``.
        dtype: like ``"float32"``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """How the model is called.

    Attributes:
        parameters: names of the forward signature, in order.
        defaults: those of them that are plain values.
        structure: the nesting of the arguments, as ``torch.utils._pytree`` writes it.
        leaves: of every argument leaf, in order: null for a tensor, else the value in a list.
        tensors: the leaves that are tensors, as the graphs take them.
        output: the nesting of what is returned.
        results: what is returned, in order.
        framed: names of the leaves that carry frames.
    """

    parameters: tuple[str, ...]
    defaults: Mapping[str, Any]
    structure: str
    leaves: tuple[list[Any] | None, ...]
    tensors: tuple[TensorInfo, ...]
    output: str
    results: tuple[TensorInfo, ...]
    framed: tuple[str, ...] = ()


@dataclass(frozen=True)
class VariantInfo:
    """One variant.

    Attributes:
        file: its file in the artefact's folder; of a single file, its own name.
        passes: names of the passes that are active.
        loads: names of the state that it takes after the inputs, in order.
        stores: names of the state that it returns after the results, in order.
        state: the tensors of ``loads``, as the graph takes them.
        afresh: position of the variant to run where the state is not there.
        parts: SHA-256 of every part of its file but the manifest, by name.
        linears: which of its linears are in FP8, and why others are not; empty if none was to be.
    """

    file: str
    passes: tuple[str, ...]
    loads: tuple[str, ...]
    stores: tuple[str, ...]
    state: tuple[TensorInfo, ...]
    afresh: int
    parts: Mapping[str, str] = field(default_factory=dict)
    linears: str = ""


@dataclass(frozen=True)
class ShareInfo:
    """Ranks that divide something among them.

    Attributes:
        of: what: "items" of the batch or "tokens" of every frame.
        count: how many they are.
        group: how the graphs call their group; loading binds another name to it.
    """

    of: Literal["branches", "items", "tokens"]
    count: int
    group: str


@dataclass(frozen=True)
class Manifest:
    """What an artefact is.

    Attributes:
        format: kind of the files.
        portable: whether they run without fisopt.
        needs: what a process that runs them must have installed.
        opset: of ONNX files, by domain.
        model: class, config, dtype and device of the original.
        recipe: the passes, complete in itself.
        versions: what it was written with, by package.
        seeds: seeds of passes that draw, by name.
        grid: latent frames, rows and columns of tokens of the exported call.
        open_sizes: the sizes among frames, height and width that may be others.
        fixed_sizes: the rest, each with the reason.
        call: how the model is called.
        steps: denoising steps of the schedule; null where steps do not matter.
        schedule: position of the variant of each step.
        variants: the variants.
        beside: SHA-256 of the other files of a folder, by name.
        mesh: the ranks that run it together; none for one process.
    """

    format: Format
    portable: bool
    needs: tuple[str, ...]
    opset: Mapping[str, int]
    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    grid: tuple[int, int, int]
    open_sizes: tuple[str, ...]
    fixed_sizes: Mapping[str, str]
    call: Call
    steps: int | None
    schedule: tuple[int, ...]
    variants: tuple[VariantInfo, ...]
    beside: Mapping[str, str] = field(default_factory=dict)
    mesh: tuple[ShareInfo, ...] = ()

    def text(self) -> str:
        """The manifest as JSON, with its own SHA-256."""
        said = {"fisopt_artefact": FORMAT, **dataclasses.asdict(self)}
        return json.dumps({**said, SEAL: digest(said)}, indent=1)

    @staticmethod
    def read(text: str | bytes, where: str, *, checked: bool = True) -> Manifest:
        """The inverse of `text`.

        Args:
            text: the manifest.
            where: its name in errors.
            checked: whether its digest must be right.

        Raises:
            ExportError: it is no manifest, of a newer form, or was changed.
        """
        try:
            said = json_value(text)
            form = said.pop("fisopt_artefact")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ExportError(
                f"{where} is not an artefact of fisopt, its manifest cannot be read: {error}; "
                "copy or export it again"
            ) from error
        if type(form) is not int or not 1 <= form <= FORMAT:
            made = said.get("versions")
            by = str(made.get("fisopt", "unknown"))[:20] if isinstance(made, Mapping) else "unknown"
            raise ExportError(
                f"{where} is an artefact of form {shown(form)}, written by fisopt {by}; this "
                f"version reads forms 1 to {FORMAT}: update fisopt, or export again"
            )
        seal = said.pop(SEAL, None)
        try:
            read: Manifest = conformed(Manifest, said, "the manifest")
            wrong = read._wrong()
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ExportError(
                f"{where}: the manifest is malformed: {error}; copy or export it again"
            ) from error
        if wrong:
            raise ExportError(
                f"{where}: the manifest is malformed: wanted that {wrong[0]}; copy or export it "
                "again"
            )
        if checked and seal != digest({"fisopt_artefact": form, **said}):
            raise ExportError(
                f"{where}: the manifest "
                + ("was changed after it was written" if seal else "has no digest")
                + ": copy or export it again, or pass check='none' (--check none) to read it as "
                "it is"
            )
        return read

    def _wrong(self) -> list[str]:
        """What a loader relies on and is not so."""
        places, call = range(len(self.variants)), self.call
        every = (*call.tensors, *call.results, *(t for v in self.variants for t in v.state))
        wanted = {
            f"format is one of {FORMATS}": self.format in FORMATS,
            "model has a class, a config, a dtype and a device": isinstance(
                self.model["class"], str
            )
            and isinstance(self.model["config"], Mapping)
            and not any(str(name).startswith("_") for name in self.model["config"])
            and self.model["dtype"] in DTYPES
            and isinstance(self.model["device"], str)
            and _DEVICE.fullmatch(self.model["device"]) is not None,
            "config_sha256 is that of the model's config": self.model["config_sha256"]
            == digest(self.model["config"]),
            "recipe has passes": isinstance(self.recipe["passes"], list)
            and all(isinstance(p, Mapping) and "name" in p for p in self.recipe["passes"]),
            "call has a tensor for every leaf that is null": len(call.tensors)
            == call.leaves.count(None),
            "leaves are null or one plain value": all(_is_leaf(leaf) for leaf in call.leaves),
            "call has defaults by name": set(call.defaults) <= set(call.parameters),
            f"dtype is one of torch's and shape is numbers or products of {SIZES}": all(
                t.dtype in DTYPES and all(map(_is_size, t.shape)) for t in every
            ),
            f"open_sizes are of {SIZES}": set(self.open_sizes) <= set(SIZES),
            "schedule has a variant for each step": len(self.schedule)
            == (1 if self.steps is None else self.steps)
            and all(i in places for i in self.schedule),
            "afresh is a variant": all(v.afresh in places for v in self.variants),
            "state has a tensor for each of loads": all(
                len(v.state) == len(v.loads) for v in self.variants
            ),
            "afresh loads nothing": all(
                v.afresh in places and not self.variants[v.afresh].loads for v in self.variants
            ),
            "mesh has two ranks or more of items, then of tokens, each in a group of its own": [
                (s.of, s.group) for s in self.mesh
            ]
            in [[(of, f"fisopt_{of}") for of in way] for way in _MESHES]
            and all(2 <= s.count <= _MOST_RANKS for s in self.mesh),
            "file is a name in the artefact's folder": all(
                is_name(name) for name in (*(v.file for v in self.variants), *self.beside)
            ),
        }
        return [said for said, so in wanted.items() if not so]


_MESHES: tuple[list[str], ...] = ([], ["items"], ["tokens"], ["items", "tokens"])
_MOST_RANKS = 1 << 16
SEAL = "sha256"
"""The manifest's digest of all else in it."""
SIZES = ("frames", "height", "width")
"""The sizes of a token grid, in its order."""
DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
"""Types of tensors by name."""
_SIZE = re.compile(rf"([1-9][0-9]{{0,9}}\*)?({'|'.join(SIZES)})(\*({'|'.join(SIZES)})){{0,2}}")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta)(:[0-9]{1,3})?")


_HINTS = {cls: get_type_hints(cls) for cls in (TensorInfo, Call, VariantInfo, ShareInfo, Manifest)}
"""The types of entries; evaluated once, for a reader evaluates nothing."""


def _is_size(size: int | str) -> bool:
    if isinstance(size, str):
        return _SIZE.fullmatch(size) is not None
    return 0 <= size < 1 << 48


def _is_leaf(leaf: list[Any] | None) -> bool:
    plain = (bool, int, float, str, type(None))
    return leaf is None or (len(leaf) == 1 and isinstance(leaf[0], plain))


def conformed(kind: Any, said: Any, where: str) -> Any:
    """A value of JSON as a type says it: lists become tuples, objects become dataclasses.

    Raises:
        TypeError: it is of another type, or an entry is missing or not known.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _HINTS and isinstance(said, dict):
        hints = _HINTS[kind]
        named = {k: conformed(hints.get(k, Any), v, f"{where}.{k}") for k, v in said.items()}
        return kind(**named)
    if kind is Any:
        return said
    if origin is Literal:
        return conformed(str, said, where)
    if origin is types.UnionType:
        fit = (k for k in inner if isinstance(said, get_origin(k) or k))
        return conformed(next(fit, inner[0]), said, where)
    if origin is tuple and isinstance(said, list):
        kinds = [inner[0]] * len(said) if inner[-1] is ... else list(inner)
        pairs = enumerate(zip(kinds, said, strict=True))
        return tuple(conformed(k, x, f"{where}[{i}]") for i, (k, x) in pairs)
    if origin is Mapping and isinstance(said, dict):
        return {k: conformed(inner[1], v, f"{where}.{k}") for k, v in said.items()}
    if origin is list and isinstance(said, list):
        return said
    if not isinstance(kind, type) or type(said) is not kind:
        raise MalformedError(f"{where} is {shown(said)}, wanted {kind}")
    return said
