"""Describe an export: the manifest of an optimised module, its variants and their sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fisopt.artefact.graph import placeholders, results_of
from fisopt.artefact.manifest import SIZES, Call, Format, Manifest, TensorInfo, VariantInfo
from fisopt.artefact.ranks import share_infos
from fisopt.artefact.variants import Exported, Exports
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.recipe.identity import Identity
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import names_of
from fisopt.runtime.optimized import OptimizedModule
from fisopt.stored.tree import structure_text
from fisopt.versions import versions

NEEDS: dict[Format, tuple[str, ...]] = {
    "pt2": ("torch",),
    "aoti": ("torch",),
    "onnx": ("onnxruntime", "numpy"),
    "text": (),
}


def describe(
    optimized: OptimizedModule,
    inputs: Inputs,
    exports: Exports,
    files: Sequence[str],
    *,
    form: Format,
    portable: bool,
    kernels: KernelOptions,
    opset: Mapping[str, int],
    linears: Sequence[str],
    shapes: Mapping[str, tuple[int | str, ...]],
    fixed: Mapping[str, str],
) -> Manifest:
    """Make the manifest of an artefact.

    Args:
        optimized: what is exported.
        inputs: the call that is exported.
        exports: its variants, and which runs when.
        files: the file of each.
        form: kind of the files.
        portable: whether they run without fisopt.
        kernels: the precision of the linears.
        opset: of ONNX files, by domain.
        linears: of each variant, which of its linears are in FP8.
        shapes: of the tensors that have open sizes, by name.
        fixed: sizes of the grid that are fixed, each with the reason.
    """
    program = exports.all[0].program
    layout = program.layout
    needs = NEEDS[form] if portable else (*NEEDS[form], "fisopt")
    return Manifest(
        format=form,
        portable=portable,
        needs=needs,
        opset=dict(opset),
        model={**Identity.of(optimized.original).plain(), **_place(optimized.original)},
        recipe=Recipe.of(optimized.original, optimized.passes, kernels).plain(),
        versions=versions("onnx", "onnxscript") if form == "onnx" else versions(),
        seeds={
            name: seed
            for name, p in zip(names_of(optimized.passes), optimized.passes, strict=True)
            if isinstance(seed := getattr(p, "seed", None), int)
        },
        grid=(layout.frames, layout.height, layout.width),
        open_sizes=tuple(n for n in SIZES if n not in fixed),
        fixed_sizes=dict(fixed),
        call=_call(optimized.original, inputs, program, shapes),
        steps=exports.steps,
        schedule=exports.positions,
        variants=tuple(
            _variant(*held, shapes) for held in zip(exports.all, files, linears, strict=True)
        ),
        mesh=share_infos(program.mesh),
    )


def _variant(
    exported: Exported, file: str, linears: str, shapes: Mapping[str, tuple[int | str, ...]]
) -> VariantInfo:
    program = exported.program
    held = placeholders(program)
    state = held[len(held) - len(program.loads) :]
    return VariantInfo(
        file=file,
        passes=exported.variant.names,
        loads=program.loads,
        stores=program.stores,
        state=tuple(tensor_info(n, shapes) for n in state),
        afresh=exported.afresh,
        linears=linears,
    )


def _call(
    model: nn.Module,
    inputs: Inputs,
    program: Program,
    shapes: Mapping[str, tuple[int | str, ...]],
) -> Call:
    parameters, defaults = signature(model)
    full = Inputs.of(arranged(inputs.kwargs(), parameters, defaults))
    held = placeholders(program)
    taken = held[: len(held) - len(program.loads)]
    return Call(
        parameters=parameters,
        defaults=defaults,
        structure=structure_text(full.structure),
        leaves=tuple(None if isinstance(x, torch.Tensor) else [x] for x in full.leaves),
        tensors=tuple(tensor_info(n, shapes) for n in taken),
        output=structure_text(program.out_structure),
        results=tuple(
            tensor_info(node, shapes, name)
            for name, node in results_of(program, program.graph).items()
        ),
        framed=program.framed,
    )


def signature(model: nn.Module) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of a model's forward arguments, in order, and those defaults that JSON can say."""
    kept = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    defaults = {
        p.name: p.default
        for p in kept
        if p.default is None or isinstance(p.default, (bool, int, float, str))
    }
    return tuple(p.name for p in kept), defaults


def arranged(
    given: Mapping[str, Any], parameters: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments in the order of the signature, with the defaults of those that are not given."""
    named = {n: given.get(n, defaults.get(n)) for n in parameters if n in given or n in defaults}
    return named | {n: v for n, v in given.items() if n not in named}


def tensor_info(
    node: fx.Node, shapes: Mapping[str, tuple[int | str, ...]], name: str | None = None
) -> TensorInfo:
    """Describe the value of a node."""
    value = node.meta["val"]
    name = name or node.name
    shape = shapes.get(name, tuple(int(s) for s in value.shape))
    return TensorInfo(name, shape, str(value.dtype).removeprefix("torch."))


def _place(model: nn.Module) -> dict[str, str]:
    """Type and device of a model."""
    first = next(model.parameters(), torch.empty(0))
    dtype = getattr(model, "dtype", None) or first.dtype
    return {"dtype": str(dtype).removeprefix("torch."), "device": str(first.device)}
