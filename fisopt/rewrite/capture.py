"""Capture: an nn.Module in, a Program out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fisopt.errors import CaptureError, FisoptError
from fisopt.nearest import did_you_mean
from fisopt.rewrite.axes import TokenLayout, axes_of, layout_of
from fisopt.rewrite.program import BOUNDARIES, Program, build
from fisopt.rewrite.tools.tool import settle
from fisopt.rewrite.tracing.block_paths import blocks_of, matches, outer_lists
from fisopt.rewrite.tracing.fixed_grid import FixedGrid
from fisopt.rewrite.tracing.follow import Followed, Search, said
from fisopt.rewrite.tracing.inputs import Inputs, bind_example, check_example
from fisopt.rewrite.tracing.kept import Found, Keeping, not_kept
from fisopt.rewrite.tracing.origin import Source
from fisopt.rewrite.tracing.readiness import has_hooks, unhooked
from fisopt.rewrite.tracing.runs import check_runs
from fisopt.rewrite.tracing.tracer import Tracer
from fisopt.rewrite.tracing.trials import shape_trials
from fisopt.spec import ModelSpec


def capture(
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    spec: ModelSpec,
    keeping: Keeping = not_kept,
) -> Program:
    """Capture a video diffusion transformer as a Program.

    Args:
        model: an inference-ready module (``eval``); parameters may live on the meta device.
        example_inputs: the keyword arguments of one forward call.
        spec: where the repeated blocks are and what the token grid is.
        keeping: finds where captures of the model are kept, which are used again.

    Returns:
        A Program whose parameters are the model's own tensors.

    Raises:
        InputError: example inputs are missing, of the wrong rank, NaN, or need gradients.
        CaptureError: no block matches, the grid is not that of the tokens, or export fails.
    """
    settle(model)
    inputs = bind_example(model, example_inputs)
    check_example(model, inputs)
    _check_blocks(model, spec)
    layout = layout_of(spec.grid_of(inputs.kwargs()))
    if spec.images and layout.height != 1:
        raise CaptureError(
            "images=True: the grid is (rows, 1, columns), with rows instead of frames; got "
            f"{layout}"
        )
    plain = unhooked(model)
    traced = spec.prepare(plain) if spec.prepare is not None else plain
    notes: dict[str, None] = {}

    if held := [inputs.names[i] for i, _ in inputs.positions]:
        notes[f"each value of {_some(held)} is a graph of its own: the model may read it"] = None
    kept = keeping(model, spec, notes)

    def follow(inputs: Inputs, layout: TokenLayout) -> Followed:
        found = kept.found(inputs, layout, lambda: _follow(traced, spec, inputs, layout))
        _say(model, found, notes)
        return found.followed

    followed = follow(inputs, layout)
    tracer = Tracer(traced, spec.blocks)
    grid_of = spec.grid_of if callable(spec.grid) else FixedGrid(layout, inputs, followed.dims)
    source = Source(model, tracer, spec, grid_of, followed, follow, notes, kept)
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
    raise CaptureError(
        f"{type(model).__name__} has no module that matches blocks={list(spec.blocks)}; "
        f"{_suggested(model, spec)}"
    )


def _suggested(model: nn.Module, spec: ModelSpec) -> str:
    """The lists of layers that a model has, the longest first, and those of the likest names."""
    lists = sorted(outer_lists(model).items(), key=lambda pair: -len(pair[1]))
    if not lists:
        names = [name for name, _ in model.named_children()]
        return f"it has no list of layers; name the modules that process the video among {names}"
    held = ", ".join(f"{path}.* ({len(m)} {type(m[0]).__name__})" for path, m in lists[:12])
    more = f" and {len(lists) - 12} more" if lists[12:] else ""
    near = [did_you_mean(pattern, (f"{path}.*" for path, _ in lists)) for pattern in spec.blocks]
    return (
        f"{next(filter(None, near), '')}its lists of layers are {held}{more}: name those that "
        "process the video"
    )


def _follow(
    model: nn.Module,
    spec: ModelSpec,
    inputs: Inputs,
    layout: TokenLayout,
) -> Found:
    """Find how inputs follow the frames, and what a captured graph does not do."""
    blocks = list(blocks_of(model, spec.blocks).values())
    with shape_trials(model, blocks, inputs) as (trial, changed, pinned, carried):
        try:
            search = Search(inputs, layout, spec, trial, trial(inputs))
        except FisoptError:
            raise
        except Exception as error:
            refused, found = error, None
        else:
            found = search.run()
            kept = carried(inputs) if changed else ""
    if found is None:
        check_runs(model, inputs, "the example inputs")
        Tracer(model, spec.blocks).flat(inputs)
        raise CaptureError(
            f"{type(model).__name__} runs, but not on shapes alone: "
            f"{said(refused, layout.frames)}\n"
            "Rewrite that line with tensor operations, or give ModelSpec a `prepare` function "
            "that does"
        ) from refused
    if kept:
        raise CaptureError(
            f"{type(model).__name__}: forward sets {_some(list(changed))}, and {kept}. A captured "
            "graph sees one call and keeps nothing from it. Pass a cache as an argument and "
            "write it in place or replace it in its dict or list, or keep it in a buffer of one "
            "size and write that in place; pass a call counter as an argument"
        )
    return Found(found, tuple(_effects(model, list(changed), pinned)))


def _say(model: nn.Module, found: Found, notes: dict[str, None]) -> None:
    """Note, and warn of, what a captured graph does not do."""
    for effect in found.effects:
        notes[effect] = None
        warnings.warn(f"{type(model).__name__}: {effect}", stacklevel=4)
    followed = found.followed
    if not followed.step:
        notes[f"captured at {followed.frames} latent frames alone: {followed.why_fixed}"] = None


def _effects(model: nn.Module, changed: Sequence[str], pinned: Iterable[str]) -> Iterator[str]:
    """What calls of a model do beside computing, which calls of its graph do not."""
    for kernels in pinned:
        yield (
            f"attention is bound to a kernel ({kernels}: sdpa_kernel); a graph does not keep that, "
            "torch chooses. To bind it, give attention=, or run the optimised model inside "
            "sdpa_kernel"
        )
    hooked = [path for path, module in model.named_modules() if has_hooks(module)]
    if changed:
        yield (
            f"forward sets {_some(changed)}; the captured graph does not, so a later call does "
            "not see it and records nothing"
        )
    if hooked:
        yield (
            f"hooks run on {_some(hooked)}: the graph contains what they return, but not what "
            "they record"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _check_video(program: Program, spec: ModelSpec) -> None:
    """Insist that the blocks carry the grid's tokens."""
    layout = program.layout
    if not program.blocks:
        raise CaptureError(f"no operator ran inside the blocks {list(spec.blocks)}")
    followed = program.source.followed.step > 0 and layout.frames > BOUNDARIES
    for block in program.blocks if followed else []:
        call = block.call
        axes = [a for n in (call, *call.users) for a in axes_of(n) if a is not None]
        if not axes:
            raise CaptureError(
                f"block {block.path} returns nothing that carries the frames of "
                f"the grid {layout}; its inputs are "
                f"{[_text(n) for n in call.all_input_nodes if n.op != 'get_attr']}: "
                "check the grid, and name video blocks only"
            )
    _check_tokens_per_frame(program)


def _check_tokens_per_frame(program: Program) -> None:
    """Refuse a grid with more tokens a frame than there are, such as one of latents, not tokens."""
    found = [
        math.prod(node.meta["val"].shape[:dim]) * axis.inner  # rows may be folded into the batch
        for block in program.blocks
        for node in (block.call, *block.call.users)
        if isinstance(node.meta.get("val"), torch.Tensor)
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
