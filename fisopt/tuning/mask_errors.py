"""Mask errors: how far each candidate mask moves each block, and all chosen ones the model.

Blocks are measured independently: each runs on the inputs that the dense model gives it, once
dense and once under every candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.errors import InputError
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.tiling.masks import FrameMask, RadialDecay, SlidingWindow, TileMask
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.cost import graph_cost
from fisopt.rewrite.program import Program

RADII = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Radii of the sliding windows that a search tries."""


def tile_candidates(frames: int) -> tuple[FrameMask, ...]:
    """The tile masks that differ at some number of frames, the sparsest first, dense left out."""
    return _distinct([TileMask(k) for k in range(1, frames + 1)], frames)


def default_candidates(frames: int) -> tuple[FrameMask, ...]:
    """Tile masks, sliding windows and radial decays, the sparsest first, dense left out."""
    windows = [SlidingWindow(radius) for radius in RADII if radius < frames]
    decays = [RadialDecay(near) for near in range(1, 5)]
    return _distinct([*tile_candidates(frames), *windows, *decays], frames)


def _distinct(masks: Sequence[FrameMask], frames: int) -> tuple[FrameMask, ...]:
    tables = {mask: mask.table(frames) for mask in masks}
    first: dict[tuple[bool, ...], FrameMask] = {}
    for mask, table in tables.items():
        if not bool(table.all()):
            first.setdefault(tuple(table.flatten().tolist()), mask)
    return tuple(sorted(first.values(), key=lambda mask: int(tables[mask].sum())))


@dataclass(frozen=True)
class Calls:
    """A dense Program and what every candidate makes of it, for inputs of one shape."""

    dense: Program
    candidates: tuple[FrameMask, ...]
    sparse: tuple[Program, ...]

    @staticmethod
    def of(dense: Program, candidates: Sequence[FrameMask]) -> Calls:
        """Rewrite a Program once for every candidate.

        Raises:
            InputError: there is no candidate.
            PreconditionError: one does not apply.
        """
        if not candidates:
            raise InputError(
                "mask search: every candidate mask is dense at this number of frames; give "
                "sparser ones, or more frames"
            )
        sparse = tuple(TileAttention(mask)(dense).program for mask in candidates)
        return Calls(dense, tuple(candidates), sparse)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The paths of the video blocks."""
        return tuple(block.path for block in self.dense.blocks)

    def flops(self) -> list[list[float]]:
        """FLOPs of every block under every candidate, dense last; equal where none applies."""
        programs = (*self.sparse, self.dense)
        columns = [[graph_cost(b.body.graph).total for b in p.blocks] for p in programs]
        return [list(row) for row in zip(*columns, strict=True)]

    def errors(self, call: Mapping[str, Any]) -> list[list[float]]:
        """How far every candidate moves every block on one forward call's arguments.

        Returns:
            [blocks][candidates]: the relative L2 distance between the video that the block
            returns under the mask and when dense.
        """
        probe = _Probe(self)
        with torch.no_grad():
            probe.run(*self.dense.values(call))
        return probe.errors


class _Probe(fx.Interpreter):
    """Run the dense Program; at every block also run what the candidates make of it."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls.dense.graph_module)
        self.calls = calls
        self.place = {block.call: i for i, block in enumerate(calls.dense.blocks)}
        self.errors: list[list[float]] = []

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter.run_node`."""
        if n not in self.place:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        dense = self.calls.dense.callee(n)
        result = dense(*args)
        video = [i for i, node in enumerate(results(dense.graph)) if carries_frames(node)]
        row = []
        for program in self.calls.sparse:
            block = program.blocks[self.place[n]]
            tables = [_buffer(program, a) for a in block.call.args[len(args) :]]
            other = block.body(*args, *tables)
            row.append(_distance(other, result, video))
        self.errors.append(row)
        return result


def _distance(got: Any, want: Any, video: list[int]) -> float:
    """Relative L2 distance of the results of a block that hold video."""
    moved = total = 0.0
    for i in video:
        a, b = (x[i] if isinstance(x, (tuple, list)) else x for x in (got, want))
        moved += float((a.double() - b.double()).square().sum())
        total += float(b.double().square().sum())
    return (moved / total) ** 0.5 if total else 0.0


def _buffer(program: Program, node: Any) -> Tensor:
    value: Tensor = getattr(program.graph_module, str(node.target))
    return value


def joint_error(dense: Program, sparse: Program, call: Mapping[str, Any]) -> float:
    """How far a rewritten Program moves the model's result: relative L2 distance."""
    values = dense.values(call)
    with torch.no_grad():
        want = dense.graph_module(*values)[0].double()
        got = sparse.graph_module(*values)[0].double()
    return float((got - want).norm() / want.norm())
