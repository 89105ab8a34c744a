"""Capture: an nn.Module in, a Program out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import fx, nn

from fisopt.errors import CaptureError, shown
from fisopt.rewrite.axes import TokenLayout, axes_of
from fisopt.rewrite.inputs import (
    FrameDims,
    Inputs,
    bind_example,
    check_example,
    find_frame_dims,
)
from fisopt.rewrite.program import BOUNDARIES, Program, Source, build, layout_of
from fisopt.rewrite.runs import check_runs
from fisopt.rewrite.template import Template, matches
from fisopt.rewrite.tracing import export, shape_trials
from fisopt.spec import ModelSpec

Dynamic = Literal["frames", "all"]


def capture(
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    spec: ModelSpec,
    dynamic: Dynamic = "frames",
) -> Program:
    """Capture a video diffusion transformer as a Program.

    Args:
        model: an inference-ready module (``eval``); parameters may live on the meta device.
        example_inputs: the keyword arguments of one forward call.
        spec: where the repeated blocks are and what the token grid is.
        dynamic: which sizes the first export leaves open: the frame count, or every size the
            model allows (slower; saves a second export if other resolutions follow).

    Returns:
        A Program whose parameters are the model's own tensors.

    Raises:
        InputError: example inputs are missing, of the wrong rank, NaN, or need gradients.
        CaptureError: no block matches, the grid is not that of the tokens, or export fails.
    """
    inputs = bind_example(model, example_inputs)
    check_example(model, inputs)
    _check_blocks(model, spec)
    layout = layout_of(spec.grid_of(inputs.kwargs()))
    traced = spec.prepare(model) if spec.prepare is not None else model
    dims = _frame_dims(traced, inputs, layout)
    template = Template(traced, spec.blocks, dims)
    source = Source(model, template, _grid_function(spec, layout, dims), dims)
    template.trace(inputs, general=dynamic == "all")
    program = build(source, inputs)
    _check_video(program, spec)
    return program


def _check_blocks(model: nn.Module, spec: ModelSpec) -> None:
    paths = [name for name, _ in model.named_modules() if name]
    found = [path for path in paths if matches(path, spec.blocks)]
    lists = [p for p in found if isinstance(model.get_submodule(p), (nn.ModuleList, nn.ModuleDict))]
    if lists:
        raise CaptureError(
            f"blocks={list(spec.blocks)} names {lists} of {type(model).__name__}, which only hold "
            f"the blocks; write blocks={tuple(f'{path}.*' for path in lists)}"
        )
    if found:
        return
    lists = sorted({re.sub(r"\.\d+$", ".*", p) for p in paths if re.search(r"\.\d+$", p)})
    raise CaptureError(
        f"{type(model).__name__} has no module that matches blocks={list(spec.blocks)}; "
        f"its repeated modules are {lists[:12] or 'none'}: name those that process the video"
    )


def _frame_dims(model: nn.Module, inputs: Inputs, layout: TokenLayout) -> FrameDims:
    with shape_trials(model, inputs) as runs:
        dims = find_frame_dims(inputs, layout, runs)
        fails = dims is None and not runs(inputs)
    if dims is not None:
        return dims
    shapes = {
        name: tuple(x.shape) if isinstance(x, torch.Tensor) else shown(x)
        for name, x in zip(inputs.names, inputs.leaves, strict=True)
    }
    if fails:
        check_runs(model, inputs, "the example inputs")
        export(model, inputs, None)
    raise CaptureError(
        f"no input of {type(model).__name__} carries the token grid {layout} "
        f"({layout.tokens} tokens); got {shapes}. Wanted a tensor with {layout.frames} frames, "
        f"rows and columns that {layout.height} and {layout.width} divide, or {layout.tokens} "
        "tokens, that the model also accepts with one frame more: check the grid"
    )


def _grid_function(spec: ModelSpec, layout: TokenLayout, dims: FrameDims) -> Any:
    """The grid of any inputs: the spec's own, or the example's scaled by what the inputs say."""
    if callable(spec.grid):
        return spec.grid_of
    leaf, ((dim, per_frame), *_) = next(iter(dims.items()))

    def grid(kwargs: Mapping[str, Any]) -> tuple[int, int, int]:
        value = Inputs.of(kwargs).leaves[leaf]
        size = value.shape[dim] if isinstance(value, torch.Tensor) else value
        return (size // per_frame, layout.height, layout.width)

    return grid


def _check_video(program: Program, spec: ModelSpec) -> None:
    """Insist that the blocks carry the grid's tokens."""
    layout = program.layout
    if not program.blocks:
        raise CaptureError(f"no operator ran inside the blocks {list(spec.blocks)}")
    for call in program.blocks if layout.frames > BOUNDARIES else []:
        axes = [a for n in (call, *call.users) for a in axes_of(n) if a is not None]
        if not axes:
            raise CaptureError(
                f"block {call.meta['fisopt.block']} returns nothing that carries the frames of "
                f"the grid {layout}; its inputs are "
                f"{[_text(n) for n in call.all_input_nodes if n.op != 'get_attr']}: "
                "check the grid, and name video blocks only"
            )
    _check_tokens_per_frame(program)


def _check_tokens_per_frame(program: Program) -> None:
    """Refuse a grid with more tokens a frame than there are, such as one of latents, not tokens."""
    found = [
        math.prod(node.meta["val"].shape[:dim]) * axis.inner  # rows may be folded into the batch
        for call in program.blocks
        for node in (call, *call.users)
        for dim, axis in enumerate(axes_of(node))
        if axis is not None and axis.inner > 1  # 1: frames have a dimension of their own
    ]
    wanted = program.layout.tokens_per_frame
    if found and max(found) < wanted:
        raise CaptureError(
            f"the grid {program.layout} has {wanted} tokens a frame, the blocks return "
            f"{max(found)}; the grid counts tokens, so divide rows and columns of the latents by "
            "the patch size"
        )


def _text(node: fx.Node) -> str:
    value = node.meta.get("val")
    return f"{node.name}{tuple(value.shape) if isinstance(value, torch.Tensor) else ''}"
