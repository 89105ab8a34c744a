"""Export: an optimised model as files that run in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from fisopt.artefact import aoti, onnx, pt2
from fisopt.artefact.describe import describe
from fisopt.artefact.digests import digests, of_file
from fisopt.artefact.graph import exported, refuse_meta, refuse_writes
from fisopt.artefact.manifest import FILE, FORMATS, RECIPE, SIZES, Format, Manifest
from fisopt.artefact.onnx_operators import LEGALISATION
from fisopt.artefact.ranks import name_groups, share_infos
from fisopt.artefact.replaceable import SUFFIXES, foreign, variant_files
from fisopt.artefact.symbolic import Opened, open_sizes
from fisopt.artefact.text import text_of
from fisopt.artefact.variants import Exports, exports_of
from fisopt.checked import checked, choice, flag, path_of
from fisopt.codegen.constant_linears import ROUNDED, round_linears
from fisopt.codegen.flatten import flatten
from fisopt.codegen.kernel_options import KernelOptions, Linear
from fisopt.codegen.quantised_weights import forget
from fisopt.concurrency import tracing
from fisopt.errors import ExportError
from fisopt.files import Foreign, check_free, written
from fisopt.recipe.recipe import as_yaml
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs, bind_example
from fisopt.runtime.optimized import OptimizedModule


@checked
def export(
    optimized: OptimizedModule,
    path: Path | str,
    format: Format = "pt2",
    portable: bool = True,
    *,
    example_inputs: Mapping[str, Any] | None = None,
    steps: int | None = None,
    dynamic: bool = True,
    force: bool = False,
    linear: Linear | None = None,
) -> Path:
    """Write an optimised model as files that run without the model's code.

    A path that ends in the format's suffix (``.pt2``, ``.onnx``, ``.txt``) becomes one file. Any
    other path becomes a folder: ``manifest.json``, ``recipe.yaml`` and a file for each variant.
    There are several variants if the Program changes with the denoising step.

    Args:
        optimized: what `fisopt.optimize` returned for a module.
        path: where to write.
        format: "pt2" (torch.export), "onnx", "aoti" (a compiled package), or "text": the graph
            without weights, also of a model on the meta device.
        portable: decompose declared operators into plain torch, so that torch alone runs the file.
            Otherwise the operators stay, and a process that loads the file must import fisopt.
        example_inputs: keyword arguments of one forward call; by default those of the shapes that
            the module ran last.
        steps: number of denoising steps; required if a pass differs between steps.
        dynamic: keep frames, height and width dynamic where the graph allows it.
        force: replace a file, a link (its target stays), or the folder of an artefact at ``path``;
            the folder must hold nothing else.
        linear: precision of large linear layers, as `fisopt.optimize` takes it; by default that
            of ``optimized``. "fp8" and "fp8-simulated" write rounded weights, half as large as
            those of a model in bfloat16; "model" writes the weights as they are.

    Returns:
        The path.

    Raises:
        OptionError: the format or ``linear`` is unknown, or an argument has a wrong type.
        LoweringError: ``linear="fp8"``, and the device of the weights does not multiply FP8.
        ExportError: the path exists, or is a folder with files that `export` did not write, the
            format cannot hold the model, or writing failed. In each case existing files stay
            unchanged.
    """
    for option, given in (("portable", portable), ("dynamic", dynamic), ("force", force)):
        flag(option, given)
    path = path_of("export: path", path)
    check_target(path, format, portable, force=force)
    _check_module(optimized)
    kernels = KernelOptions(linear).over(KernelOptions(optimized.options.linear))
    kernels = kernels if kernels.rounds else kernels.unrounded
    if format == "onnx":
        onnx.refuse_fp8(kernels)
        onnx.refuse_bfloat16(optimized.original)
    inputs = _inputs(optimized, example_inputs)
    exports = exports_of(optimized, inputs, steps)
    refuse_writes(exports.all[0].program)
    _check_mesh(exports, format)
    if format != "text":
        refuse_meta(exports.all[0].program)
    files = _files(path, format, len(exports.all))
    try:
        opened = _opened(optimized, exports, kernels, format, portable, SIZES if dynamic else ())
    finally:
        if kernels.rounds and not optimized.options.rounds:  # what calls do not need
            forget(optimized.original)
    manifest = describe(
        optimized,
        inputs,
        exports,
        files,
        form=format,
        portable=portable,
        kernels=kernels,
        opset={"ai.onnx": onnx.OPSET} if format == "onnx" else {},
        linears=[str(module.meta.get(ROUNDED, "")) for module in opened.modules],
        shapes=opened.shapes,
        fixed=opened.fixed,
    )
    whole = bool(path.suffix)
    data = onnx.data_files(path) if whole and format == "onnx" else []
    with written(path, force=force, foreign=_foreign(path), outdated=data) as beside:
        if not whole:
            beside.mkdir()
            (beside / RECIPE).write_text(as_yaml(manifest.recipe), encoding="utf-8")
        places = [beside if whole else beside / file for file in files]
        for i, place in enumerate(places):
            with tracing():
                _write(opened, i, manifest, place, path if whole else place)
        manifest = _with_digests(manifest, places, () if whole else (beside / RECIPE,))
        for place in places:
            _append(manifest, place)
        if not whole:
            (beside / FILE).write_text(manifest.text(), encoding="utf-8")
    return path


def _opened(
    optimized: OptimizedModule,
    exports: Exports,
    kernels: KernelOptions,
    format: Format,
    portable: bool,
    sizes: Sequence[str],
) -> Opened:
    """The flat graphs of all variants, with the sizes open that can be."""

    def flat(program: Program) -> fx.GraphModule:
        module = flatten(program, portable=portable)
        name_groups(module.graph, program.mesh)
        if kernels.rounds:
            module = round_linears(module, program.source.model, simulate=kernels.simulates)
        if format == "onnx":
            LEGALISATION.run(module, module)
            module.recompile()
        return module

    def at(inputs: Inputs, index: int) -> Program:
        return optimized.rewritten(inputs, exports.all[index].variant)

    if format in ("aoti", "text"):
        return open_sizes(exports, at, flat, (), f"files of format {format!r} have one size")
    if exports.all[0].program.mesh:
        return open_sizes(exports, at, flat, (), "what ranks divide has one size")
    return open_sizes(exports, at, flat, sizes)


def _foreign(path: Path) -> Foreign | None:
    """What tells other things in the folder that is replaced; None of a single file."""
    return None if path.suffix else foreign


def _write(opened: Opened, index: int, manifest: Manifest, path: Path, place: Path) -> None:
    """Write one variant; ``place`` is where its file or the folder that it is in will be."""
    module, info = opened.modules[index], manifest.variants[index]
    if manifest.format == "text":
        path.write_text(text_of(module, manifest, index), encoding="utf-8")
        return
    made = exported(module, opened.dynamic)
    if manifest.format == "pt2":
        pt2.write(made, path)
    elif manifest.format == "aoti":
        aoti.write(made, path)
    else:
        results = [t.name for t in manifest.call.results]
        results += [f"state_{i}_out" for i in range(len(info.stores))]
        onnx.write(onnx.convert(made, results), path, onnx.free_data_name(place))


def _with_digests(manifest: Manifest, files: Sequence[Path], beside: Sequence[Path]) -> Manifest:
    """A manifest that says what the files of the variants are, and those beside them."""
    variants = tuple(
        replace(variant, parts=digests(manifest.format, file))
        for variant, file in zip(manifest.variants, files, strict=True)
    )
    return replace(manifest, variants=variants, beside={f.name: of_file(f) for f in beside})


def _append(manifest: Manifest, path: Path) -> None:
    """Write the manifest into the file of a variant; a text has none."""
    if manifest.format == "onnx":
        onnx.append(path, manifest.text())
    elif manifest.format != "text":
        pt2.append(path, manifest.text())


def check_target(path: Path, format: Format, portable: bool, *, force: bool) -> None:
    """Raise for what no model can be exported to; it costs nothing and needs no model.

    Raises:
        OptionError: an unknown format.
        ExportError: the path is not free or of another format, or packages are missing.
    """
    choice("format", format, FORMATS)
    if path.suffix not in ("", SUFFIXES[format]):
        other = [name for name, end in SUFFIXES.items() if end == path.suffix]
        instead = f"; for this one pass format={other[0]!r} (--format {other[0]})" if other else ""
        raise ExportError(
            f"{path}: a file of format {format!r} ends in {SUFFIXES[format]!r}; a path without a "
            f"suffix becomes a folder{instead}"
        )
    if format == "onnx":
        if not portable:
            raise ExportError(
                "portable=False: ONNX has no operators of fisopt; leave portable=False out "
                "(--portable)"
            )
        onnx.require()
    check_free(path, force=force, foreign=_foreign(path))


def _check_module(optimized: Any) -> None:
    if not isinstance(optimized, OptimizedModule):
        hint = (
            "of a pipeline export .transformer, and .transformer_2 to a path of its own"
            if hasattr(optimized, "transformer")
            else "pass what fisopt.optimize returned"
        )
        raise ExportError(f"export: got a {type(optimized).__name__}; {hint}")


def _check_mesh(exports: Exports, format: Format) -> None:
    """Refuse what no file says of ranks."""
    first, *others = (exported.program for exported in exports.all)
    share_infos(first.mesh)
    if any(other.mesh != first.mesh for other in others):
        raise ExportError(
            "export: ranks divide the Program at some steps but not at others; let "
            "SequenceParallel or GuidanceParallel act at every step"
        )
    if first.mesh and format in ("onnx", "aoti"):
        raise ExportError(
            f"export: a model that is divided among {first.ranks} ranks leaves as format 'pt2', or "
            f"as 'text'; {format!r} has no group to bind when it is loaded"
        )


def _inputs(optimized: OptimizedModule, example_inputs: Mapping[str, Any] | None) -> Inputs:
    """The call to export."""
    if example_inputs is not None:
        return bind_example(optimized.original, example_inputs)
    if (inputs := optimized.last_inputs) is None:
        raise ExportError(
            f"export of {type(optimized.original).__name__}: no call was made yet, so its shapes "
            "are not known; pass example_inputs, the keyword arguments of one forward call"
        )
    return inputs


def _files(path: Path, format: Format, count: int) -> list[str]:
    """The file of every variant."""
    if not path.suffix:
        return variant_files(format, count)
    if count > 1:
        raise ExportError(
            f"{path}: the passes differ between steps, so there are {count} variants, and one "
            f"file holds only one; give the path of a folder, such as {path.with_suffix('')}"
        )
    return [path.name]
