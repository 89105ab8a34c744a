"""The manifest: what an artefact is, in JSON, for the loader and for any other reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    """

    parameters: tuple[str, ...]
    defaults: Mapping[str, Any]
    structure: str
    leaves: tuple[list[Any] | None, ...]
    tensors: tuple[TensorInfo, ...]
    output: str
    results: tuple[TensorInfo, ...]


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
        model: class, config and dtype of the original.
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
        if type(form) is not int or form > FORMAT:
            raise ExportError(
                f"{where} is an artefact of form {form}, written by fisopt "
                f"{said.get('versions', {}).get('fisopt')}; this version reads up to form "
                f"{FORMAT}: update fisopt, or export again"
            )
        try:
            call = said.pop("call")
            inputs, results = (_tensors(call.pop(k)) for k in ("tensors", "results"))
            variants = tuple(
                VariantInfo(**_tuples({**v, "state": _tensors(v["state"])}))
                for v in said.pop("variants")
            )
            how = Call(**_tuples(call), tensors=inputs, results=results)
            return Manifest(**_tuples(said), call=how, variants=variants)
        except (KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{where}: the manifest is malformed: {error}") from error


def _tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with tuples in the place of JSON's lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}


def _tensors(said: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in said)
