"""Mask search: measure candidate masks on a pipeline's own denoising, choose, check them together.

Source: the layer-wise search is Efficient-vDiT's, arXiv:2502.06155; what is measured, its
normalisation and the choice by cost are ours.  The paper's threshold r is on another scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fisopt.checked import checked
from fisopt.errors import InputError, OptionError, OptionTypeError, shown
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.tiling.mask_table import MaskTable, as_json, from_json
from fisopt.passes.tiling.masks import FrameMask
from fisopt.rewrite.program import Program
from fisopt.runtime.optimized import OptimizedModule
from fisopt.tuning.attention_map import frame_maps
from fisopt.tuning.mask_choice import Measurements
from fisopt.tuning.mask_errors import Calls, default_candidates, joint_error
from fisopt.tuning.progress import Progress, sizes
from fisopt.tuning.recorder import Generate, Recorder
from fisopt.versions import FISOPT


@dataclass(frozen=True)
class MaskSearch:
    """The chosen masks, and what they were chosen from.

    Attributes:
        table: a mask for every block; ``measured`` says on what, and what is predicted.
        measurements: the errors of every candidate in every block, for other choices.
        frames: latent frames of the model.
        maps: by block path [frames, frames], the share of its attention that a query of frame i
            gives to the keys of frame j, in the first call.
    """

    table: MaskTable
    measurements: Measurements
    frames: int
    maps: Mapping[str, Tensor]


def check_bound(threshold: object, target_ratio: object) -> None:
    """Insist on one of the two ways to choose.

    Raises:
        OptionError: both or none are given, or a number is out of range.
    """
    if (threshold is None) == (target_ratio is None):
        raise OptionError(
            "mask search: give either threshold (--threshold) or target_ratio (--speed)"
        )
    for name, value, least in (("threshold", threshold, 0), ("target ratio", target_ratio, 1)):
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not value > least:
            raise OptionError(f"{name} must be more than {least}, got {shown(value)}")


@checked
def search_masks(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    threshold: float | None = None,
    target_ratio: float | None = None,
    candidates: Sequence[FrameMask] = (),
    seed: int = 0,
    component: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    progress: Path | str | None = None,
    seen: Callable[[int], object] | None = None,
) -> MaskSearch:
    """Find a mask for the self-attention of every block in a pipeline's model.

    Each block runs dense and under each candidate at every step of every prompt; then the chosen
    masks run together.

    Args:
        pipeline: a diffusers pipeline; `search_masks` leaves it as it was.
        prompts: texts to generate while measuring, one for each generation.
        steps: denoising steps of a generation; the search measures all of them.
        threshold: choose the sparsest masks under which a block's output changes by at most this
            relative L2 error in every call.
        target_ratio: or the masks with the least error that make the model this many times cheaper,
            in FLOPs.
        candidates: the masks to try; by default those of `default_candidates`.
        seed: seed of the first generation's noise; each next generation adds one.
        component: of a pipeline with two transformers, the one to search for.
        arguments: more arguments of every call of the pipeline, such as its size; JSON values.
        generate: runs the pipeline for the prompt of a given number, if a call with prompt, steps,
            generator and arguments is not enough.
        progress: a file for the measurements; an interrupted search resumes from it, and a search
            with another threshold or target reuses them all.
        seen: called with the number of steps done, of ``2 * len(prompts) * steps``: half of them
            measure and half check.

    Raises:
        OptionError: the threshold or the ratio is invalid or out of reach; an argument has a wrong
            type.
        InputError: there is no prompt; there is no transformer, or there are two and no
            ``component``; an error is not finite; the file ``progress`` is damaged or belongs to
            another run.
        PreconditionError: a candidate does not apply.
        FileError: ``progress`` cannot be read or written.
    """
    check_bound(threshold, target_ratio)
    if not isinstance(candidates, (list, tuple)) or not all(
        isinstance(mask, FrameMask) for mask in candidates
    ):
        raise OptionTypeError(f"candidates must be a list of FrameMask, got {shown(candidates)}")
    recorder = Recorder(
        pipeline,
        prompts,
        steps=steps,
        seed=seed,
        component=component,
        arguments=arguments,
        generate=generate,
        seen=seen,
    )
    about = {"candidates": [as_json(mask) for mask in candidates], **recorder.about()}
    weights = recorder.weights() if progress is not None else ""
    kept = Progress(progress, {**about, "weights": weights}, _damage)
    with recorder.watched([]) as module:
        _measure(recorder, module, candidates, kept)
        found = _measurements(kept.model, [call for each in kept.in_order() for call in each])
        if threshold is not None:
            table = found.within(threshold)
        else:
            table = found.for_ratio(cast("float", target_ratio))
        joint = _joint_errors(recorder, module, table)
    frames: int = kept.model["frames"]
    figures = {
        "threshold": threshold,
        "target_ratio": target_ratio,
        "predicted_speed_up": found.ratio(table),
        "joint_error_mean": sum(joint) / len(joint),
        "joint_error_max": max(joint),
        "frames": frames,
        "torch": torch.__version__,
        "fisopt": FISOPT,
        **about,
    }
    maps = {path: torch.tensor(rows) for path, rows in kept.model["maps"].items()}
    return MaskSearch(MaskTable(table.masks, figures), found, frames, maps)


See = Callable[[Program, dict[str, Any]], None]


@contextmanager
def _calls(module: OptimizedModule, see: See) -> Iterator[None]:
    """Inside, every forward call of a module is shown with its Program."""

    def hook(_: object, args: object, kwargs: dict[str, Any]) -> None:
        see(module.program(kwargs), kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _measure(
    recorder: Recorder, module: OptimizedModule, candidates: Sequence[FrameMask], kept: Progress
) -> None:
    """Measure every prompt that is not measured yet; each is kept when it is done."""
    made: dict[int, Calls] = {}
    errors: list[list[list[float]]] = []

    def see(program: Program, call: dict[str, Any]) -> None:
        if id(program) not in made:
            masks = candidates or default_candidates(program.layout.frames)
            made[id(program)] = Calls.of(program, masks)
        calls = made[id(program)]
        if not kept.model:
            kept.model = _of_the_model(calls, call)
        errors.append(calls.errors(call))

    with _calls(module, see):
        for index in range(len(recorder.prompts)):
            if index not in kept:
                recorder.run(index)
                _measurements(kept.model, errors).worst()  # names what is not finite
                kept.keep(index, [*errors])
                errors.clear()


def _joint_errors(recorder: Recorder, module: OptimizedModule, table: MaskTable) -> list[float]:
    """The error of the whole model under a table, at every call."""
    made: dict[int, Program] = {}
    joint: list[float] = []

    def see(program: Program, call: dict[str, Any]) -> None:
        if id(program) not in made:
            made[id(program)] = TileAttention(table=table)(program).program
        joint.append(joint_error(program, made[id(program)], call))

    measured = recorder.steps * len(recorder.prompts)
    with _calls(module, see):
        for index in range(len(recorder.prompts)):
            recorder.run(index, measured)
    return joint


def _of_the_model(calls: Calls, call: dict[str, Any]) -> dict[str, Any]:
    """What does not change from call to call, as JSON values."""
    found = Measurements.of(calls)
    maps = frame_maps(calls.dense, call)
    return {
        "blocks": found.blocks,
        "candidates": [as_json(mask) for mask in found.candidates],
        "flops": found.flops,
        "total": found.total,
        "frames": calls.dense.layout.frames,
        "maps": {p: [[round(x, 6) for x in row] for row in m.tolist()] for p, m in maps.items()},
    }


def _measurements(model: Mapping[str, Any], errors: list[list[list[float]]]) -> Measurements:
    """What is known of a model, with the errors of some calls."""
    if not model:
        raise InputError(
            "mask search: the pipeline did not call its transformer; check that it makes a clip, "
            "and that component= names the transformer that it calls"
        )
    masks = tuple(cast("FrameMask", from_json(mask)) for mask in model["candidates"])
    return Measurements(tuple(model["blocks"]), masks, model["flops"], model["total"], errors)


def _damage(model: Any, prompts: Mapping[str, Any]) -> str:
    """What of some progress is not as `_measure` keeps it, in words; empty if nothing is."""
    blocks, frames = model["blocks"], model["frames"]
    candidates = [from_json(mask) for mask in model["candidates"]]
    counts = [len(blocks), len(candidates)]
    wanted = {
        "blocks are names": all(isinstance(name, str) for name in blocks),
        "candidates are masks": None not in candidates,
        "flops are numbers [blocks][candidates + 1]": sizes(model["flops"])
        == [counts[0], counts[1] + 1],
        "total is a number": model["total"] > 0,
        "frames are counted": type(frames) is int and frames > 0,
        "errors are numbers [calls][blocks][candidates]": all(
            sizes(calls) == [len(calls), *counts] for calls in prompts.values()
        ),
        "maps are of blocks, numbers [frames][frames]": model["maps"].keys() <= set(blocks)
        and all(sizes(rows) == [frames, frames] for rows in model["maps"].values()),
    }
    return ", ".join(f"wanted that {said}" for said, so in wanted.items() if not so)
