"""Load an artefact: read it as data, compare it with its manifest, make a module of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import distributed, nn
from torch.utils import _pytree as pytree

from fisopt.artefact import aoti, onnx, onnx_file, pt2
from fisopt.artefact.digests import check_beside, check_variant
from fisopt.artefact.loaded import LoadedModule
from fisopt.artefact.manifest import FILE, Manifest
from fisopt.artefact.pt2 import Runner
from fisopt.artefact.ranks import groups_of
from fisopt.artefact.signature import check_signature
from fisopt.checked import checked, choice, path_of
from fisopt.codegen import fp8
from fisopt.errors import ExportError, FileError, OptionError
from fisopt.reading import opened, read_bytes
from fisopt.staging import recover
from fisopt.stored.tree import structure_of

Trust = Literal["data", "code"]
"""Whether an artefact may hold data only, or code too."""
Check = Literal["digests", "none"]
"""Whether the files of an artefact must have the digests in its manifest."""


@dataclass(frozen=True)
class Artefact:
    """What is known of an artefact before it runs.

    Attributes:
        path: where it is.
        manifest: what it is.
        files: the file of every variant.
        output: the nesting of what it returns.
        signed: the comment of its signature, None if nobody asked for one.
    """

    path: Path
    manifest: Manifest
    files: tuple[Path, ...]
    output: pytree.TreeSpec
    signed: str | None = None


@checked
def load(
    path: Path | str,
    scheduler: Any = None,
    *,
    trust: Trust = "data",
    check: Check = "digests",
    public_key: Path | str | None = None,
    group: distributed.ProcessGroup | str | None = None,
) -> LoadedModule:
    """Load an artefact that `fisopt.export` wrote, as a module for the same pipeline.

    Loading only reads data: it unpickles, evaluates, imports and runs nothing in the files. The
    graph calls operators of ATen and fisopt only. If the model is divided among ranks, the graph
    also calls four collectives, between the ranks of the groups that `load` binds.

    Args:
        path: the file or the folder.
        scheduler: for a loop of your own: its ``timesteps`` give the current step. In a pipeline
            the pipeline's scheduler does.
        trust: "code" for an artefact that holds code and comes from somebody you trust. An
            AOTInductor package is native code; operators of other libraries and results in classes
            of your own also need "code".
        check: "digests" compares every file with the manifest; "none" skips the comparison.
        public_key: a minisign key, as text or a file; the artefact must be signed with it.
        group: the ranks that run the artefact together: a process group or its name; None for all
            ranks. Every rank must load the artefact.

    Raises:
        OptionError: ``trust`` or ``check`` has another value, ``public_key`` is not a key, or you
            pass ``group`` for an artefact of one rank.
        RankError: the artefact needs another number of ranks.
        ExportError: the files are incomplete, are not an artefact, were changed, hold code, were
            not signed with the key, or need a package that is not installed or FP8 on a device
            without it.
    """
    path = path_of("load: path", path)
    if path.suffix == onnx.SUFFIX:
        onnx.require_runtime()
    held = examined(path, trust=trust, check=check, public_key=public_key)
    manifest = held.manifest
    if manifest.format == "text":
        raise ExportError(
            f"{path} is a graph as text, without weights, and cannot be run; export it with "
            "format='pt2' (--format pt2)"
        )
    _check_fp8(manifest, path)
    groups = groups_of(manifest.mesh, group)
    modules: dict[int, nn.Module] = {}
    runners: dict[int, Runner] = {}
    with _as_export_error():
        for i, file in enumerate(held.files):
            if manifest.format == "onnx":
                runners[i] = onnx.runner(file, manifest, i)
            elif manifest.format == "aoti":
                runners[i] = pt2.runner(aoti.load(file))
            else:
                any_code = trust == "code"
                modules[i] = pt2.read(file, manifest, i, any_library=any_code, groups=groups)
                runners[i] = pt2.placed(modules[i])
    return LoadedModule(manifest, runners, modules, lambda: scheduler, held.output)


def examined(
    path: Path,
    *,
    trust: Trust = "data",
    check: Check = "digests",
    public_key: Path | str | None = None,
) -> Artefact:
    """Read all of an artefact but its weights, and compare it with its manifest; see `load`."""
    choice("trust", trust, get_args(Trust))
    choice("check", check, get_args(Check))
    if public_key is not None:
        if check == "none":
            raise OptionError(
                "public_key= needs check='digests', because a signature covers the digests"
            )
        recover(path)
        signed = check_signature(path, public_key)
    checked, any_code = check == "digests", trust == "code"
    manifest, folder = read_manifest(path, checked=checked)
    if manifest.format == "aoti" and not any_code:
        raise ExportError(
            f"{path} is a package of AOTInductor, which is native code: if you trust where it "
            "comes from, load it with trust='code' (--trust code)"
        )
    if folder is None and len(manifest.variants) > 1:
        raise ExportError(f"{path} is one of {len(manifest.variants)} variants; load its folder")
    output = _checked_structures(manifest, path, any_code)
    files = tuple(path if folder is None else folder / v.file for v in manifest.variants)
    with _as_export_error():
        for i, (variant, file) in enumerate(zip(manifest.variants, files, strict=True)):
            if not file.is_file():
                raise ExportError(
                    f"{path}: variant {variant.file} is missing; copy or export it again"
                )
            if checked:
                check_variant(manifest, variant, file)
            if manifest.format == "pt2":
                pt2.check(file, manifest, i, any_library=any_code)
        if checked and folder is not None:
            check_beside(manifest, folder)
    return Artefact(path, manifest, files, output, None if public_key is None else signed)


def read_manifest(path: Path | str, *, checked: bool = True) -> tuple[Manifest, Path | None]:
    """The manifest of an artefact, and its folder if it is one.

    Args:
        path: the file or the folder.
        checked: whether the manifest's own digest must be right.

    Raises:
        ExportError: there is none, it is not complete, or it was changed.
    """
    path = Path(path)
    with _as_export_error():
        recover(path)
        if not os.path.lexists(path):
            raise ExportError(f"{path} does not exist; wanted what fisopt.export wrote")
        if os.path.isdir(path):
            held = path / FILE
            if not held.is_file():
                raise ExportError(
                    f"{path} is not an artefact of fisopt: it has no {FILE}; copy or export it "
                    "again"
                )
            return Manifest.read(read_bytes(held), str(path), checked=checked), path
        with opened(path) as file:
            archive = file.read(2) == b"PK"
        text = pt2.manifest_of(path) if archive else onnx_file.manifest_of(path)
    if text is None:
        raise ExportError(
            f"{path} is not an artefact of fisopt, or not complete: no manifest in it; copy or "
            "export it again"
        )
    return Manifest.read(text, str(path), checked=checked), None


def _check_fp8(manifest: Manifest, path: Path) -> None:
    """Refuse products that the device of an artefact lacks."""
    kernels, device = manifest.recipe.get("kernels"), torch.device(manifest.model["device"])
    rounds = isinstance(kernels, Mapping) and kernels.get("linear") == "fp8"
    if rounds and (what := fp8.lacks(device)) is not None:
        raise ExportError(
            f"{path}: its linears multiply in FP8, which needs a GPU of sm_89 (Ada, Hopper) or "
            f"newer; {what}. Load it on such a GPU, or export it again with linear='model'"
        )


def _checked_structures(manifest: Manifest, path: Path, any_class: bool) -> pytree.TreeSpec:
    """The nesting of the results; that of the arguments is read too."""
    call = manifest.call
    taken = structure_of(call.structure, any_class=any_class)
    output = structure_of(call.output, any_class=any_class)
    if taken.num_leaves != len(call.leaves) or output.num_leaves != len(call.results):
        raise ExportError(
            f"{path}: the manifest is malformed: wanted a nesting of {len(call.leaves)} arguments "
            f"and of {len(call.results)} results; copy or export it again"
        )
    return output


@contextmanager
def _as_export_error() -> Iterator[None]:
    """Of a file that cannot be read say that it is no artefact that can be loaded."""
    try:
        yield
    except FileError as error:
        raise ExportError(str(error)) from error
