"""Files of ONNX: the portable graph through torch's exporter, and onnxruntime to run them."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fisopt.artefact import onnx_file
from fisopt.artefact.manifest import ENTRY, Manifest, TensorInfo
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.errors import ExportError, shown

SUFFIX = ".onnx"
OPSET = 20
EXTERNAL_BYTES = 2 << 30
"""From this size on weights are in a file beside: an ONNX file holds less than 2 GiB."""


def require() -> None:
    """Raise unless the packages that write ONNX are installed."""
    for name in ("onnx", "onnxscript"):
        _import(name)


def refuse_bfloat16(model: torch.nn.Module) -> None:
    """Raise for a model that onnxruntime has no kernels for.

    Raises:
        ExportError: it computes in bfloat16, which ONNX can write and onnxruntime does not run.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    if (name := next((n for n, x in tensors if x.dtype == torch.bfloat16), None)) is not None:
        raise ExportError(
            f"{type(model).__name__} is in bfloat16 ({name}), for which onnxruntime has no "
            "kernels: convert the model first, to float16 or float32 (model.to(torch.float32), "
            "--dtype float32), or export it as pt2"
        )


def refuse_fp8(kernels: KernelOptions) -> None:
    """Raise for products that ONNX lacks.

    Raises:
        ExportError: linears multiply in FP8.
    """
    if kernels.linear == "fp8":
        raise ExportError(
            "linear='fp8': ONNX has no product of FP8 with a scale for each token; pass "
            "linear='model' (--linear model), or export format='pt2'"
        )


def convert(program: ExportedProgram, outputs: list[str]) -> Any:
    """Translate an exported program to ONNX.

    Args:
        program: a portable one.
        outputs: names of what it returns, in order.

    Raises:
        ExportError: it has an operator that ONNX lacks.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=OPSET,
                output_names=outputs,
            )
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "Error" in line] or [str(error)]
        raise ExportError(
            f"torch.onnx cannot translate the graph: {lines[-1]}; export format='pt2' instead "
            "(--format pt2)"
        ) from error
    if made is None:
        raise ExportError(
            "torch.onnx returned no program; export format='pt2' instead (--format pt2)"
        )
    return made


def opset(made: Any) -> dict[str, int]:
    """Versions of the operators by domain; the empty one is ONNX's own."""
    return {domain or "ai.onnx": int(v) for domain, v in made.model.opset_imports.items()}


def write(made: Any, path: Path, data: str) -> None:
    """Write a translated program.

    Args:
        made: what `convert` returned.
        path: where.
        data: name of the file beside that takes large weights.
    """
    size = sum(v.const_value.nbytes for v in made.model.graph.initializers.values())
    beside = {"external_data": data} if size >= EXTERNAL_BYTES else {}
    _import("onnx_ir").save(made.model, path, **beside)


def append(path: Path, manifest: str) -> None:
    """Write the manifest into a file that has none, and check the file."""
    onnx_file.append(path, manifest)
    _import("onnx").checker.check_model(path)


def data_name(name: str, number: int = 0) -> str:
    """Name of the file of weights of a file, or a further one."""
    return f"{name}.{number}.data" if number else f"{name}.data"


def free_data_name(path: Path) -> str:
    """A name for weights at which there is nothing beside a path.

    A forced export thus never writes into the weights that the file in its place still needs.
    """
    names = (data_name(path.name, number) for number in count())
    return next(name for name in names if not os.path.lexists(path.parent / name))


def data_files(path: Path) -> list[Path]:
    """The files of weights that an ONNX file of ours in a folder needs; none of any other."""
    if path.is_symlink():  # what it points to stays, and so do its weights
        return []
    try:
        model = _import("onnx").load(path, load_external_data=False)
    except Exception:  # nothing there, or nothing that could need them
        return []
    if all(entry.key != ENTRY for entry in model.metadata_props):
        return []
    entries = (entry for held in model.graph.initializer for entry in held.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    own = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    return [path.parent / name for name in sorted(names) if own.fullmatch(name)]


def require_runtime() -> None:
    """Raise unless the package that runs ONNX is installed."""
    _import("onnxruntime")


def runner(
    path: Path, manifest: Manifest, index: int
) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """Open a variant's file in onnxruntime.

    Args:
        path: the file.
        manifest: the artefact's.
        index: position of the variant.

    Raises:
        ExportError: onnxruntime is not installed or refuses the file, or it is not what the
            manifest says.
    """
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime refuses {path}: {error}") from error
    variant, call = manifest.variants[index], manifest.call
    taken = {i.name: i for i in session.get_inputs()}
    named = {t.name: t for t in (*call.tensors, *variant.state)}
    results = session.get_outputs()
    if not taken.keys() <= named.keys() or len(results) != len(call.results) + len(variant.stores):
        raise ExportError(
            f"{path} takes {shown(list(taken))} and returns {len(results)} tensors, the manifest "
            f"says {shown(list(named))} and {len(call.results) + len(variant.stores)}; export it "
            "again"
        )
    for said, held in (
        *((named[n], i) for n, i in taken.items()),
        *zip(call.results, results, strict=False),
    ):
        if not _agree(said, held):
            raise ExportError(
                f"{path}: {said.name} is {held.shape} of {held.type}, the manifest says "
                f"{list(said.shape)} of {said.dtype}; export it again"
            )

    def run(values: dict[str, Tensor]) -> list[Tensor]:
        arrays = {n: v.detach().cpu().numpy() for n, v in values.items() if n in taken}
        made = [torch.from_numpy(x) for x in session.run(None, arrays)]
        device = next(iter(values.values())).device
        return [x.to(device) for x in made]

    return run


def _agree(said: TensorInfo, held: Any) -> bool:
    """Whether a tensor of a session has the rank and the sizes that the manifest says."""
    pairs = zip(said.shape, held.shape or (), strict=False)
    return len(held.shape or ()) == len(said.shape) and all(
        isinstance(size, str) or there == size for size, there in pairs
    )


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {name}, which is not installed: pip install 'fisopt[onnx]'"
        ) from error
