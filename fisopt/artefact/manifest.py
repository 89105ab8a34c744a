"""The manifest: what an artefact is, in JSON, for the loader and for any other reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import torch

from fisopt.errors import ExportError

FORMAT = 1
"""The newest form of manifest that this version reads."""
FILE = "manifest.json"
"""Its name in a folder."""
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
    """

    file: str
    passes: tuple[str, ...]
    loads: tuple[str, ...]
    stores: tuple[str, ...]
    state: tuple[TensorInfo, ...]
    afresh: int


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

    def text(self) -> str:
        """The manifest as JSON."""
        return json.dumps({"fisopt_artefact": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @staticmethod
    def read(text: str | bytes, where: str) -> Manifest:
        """The inverse of `text`.

        Raises:
            ExportError: it is no manifest, or of a newer form.
        """
        try:
            said = json.loads(text)
            form = said.pop("fisopt_artefact")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ExportError(f"{where} is not an artefact of fisopt: no manifest in it") from error
        if type(form) is not int or not 1 <= form <= FORMAT:
            made = said.get("versions")
            by = made.get("fisopt", "unknown") if isinstance(made, Mapping) else "unknown"
            raise ExportError(
                f"{where} is an artefact of form {form}, written by fisopt {by}; this version "
                f"reads forms 1 to {FORMAT}: update fisopt, or export again"
            )
        try:
            call = said.pop("call")
            inputs, results = (_tensors(call.pop(k)) for k in ("tensors", "results"))
            variants = tuple(
                VariantInfo(**_tuples({**v, "state": _tensors(v["state"])}))
                for v in said.pop("variants")
            )
            how = Call(**_tuples(call), tensors=inputs, results=results)
            read = Manifest(**_tuples(said), call=how, variants=variants)
            wrong = read._wrong()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ExportError(f"{where}: the manifest is malformed: {error}") from error
        if wrong:
            raise ExportError(f"{where}: the manifest is malformed: wanted that {wrong[0]}")
        return read

    def _wrong(self) -> list[str]:
        """What a loader relies on and is not so."""
        places = range(len(self.variants))
        kind = getattr(torch, self.model["dtype"], None)
        wanted = {
            f"format is one of {FORMATS}": self.format in FORMATS,
            "model has a class, a config, a dtype and a device": isinstance(
                self.model["class"], str
            )
            and isinstance(self.model["config"], Mapping)
            and isinstance(self.model["device"], str)
            and isinstance(kind, torch.dtype),
            "recipe has passes": isinstance(self.recipe["passes"], list),
            "call has a tensor for every leaf that is null": len(self.call.tensors)
            == self.call.leaves.count(None),
            "call has defaults by name": isinstance(self.call.defaults, Mapping),
            "schedule has a variant for each step": len(self.schedule)
            == (1 if self.steps is None else self.steps)
            and all(type(i) is int and i in places for i in self.schedule),
            "afresh is a variant": all(v.afresh in places for v in self.variants),
            "state has a tensor for each of loads": all(
                len(v.state) == len(v.loads) for v in self.variants
            ),
            "file is a name in the artefact's folder": all(
                v.file == PurePath(v.file).name for v in self.variants
            ),
        }
        return [said for said, so in wanted.items() if not so]


def _tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with tuples in the place of JSON's lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}


def _tensors(said: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in said)
