"""Mask search: how far each candidate mask moves each block, and the best table of masks.

Blocks are measured independently: each runs on the inputs that the dense model gives it, once
dense and once under every candidate.  Two ways to choose follow, by a bound on the error and by
cost, and a check of the chosen masks together in the whole model.

Source: the layer-wise search is Efficient-vDiT's, arXiv:2502.06155; what is measured, its
normalisation and the choice by cost are ours.  The paper's threshold r is on another scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, fx

from fisopt.errors import InputError, OptionError
from fisopt.passes.mask_table import MaskTable
from fisopt.passes.masks import FrameMask, RadialDecay, SlidingWindow, TileMask
from fisopt.passes.tile_attention import TileAttention
from fisopt.rewrite.analysis import results
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.cost import graph_cost, program_cost
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
            raise InputError("mask search: there is no candidate mask that is not dense")
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
        self.place = {block.call: block.index for block in calls.dense.blocks}
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


@dataclass
class Measurements:
    """What is known of a model's blocks.

    Attributes:
        blocks: paths of the video blocks.
        candidates: masks, the columns of what follows.
        flops: [blocks][candidates + 1] FLOPs, dense last.
        total: FLOPs of the whole dense model.
        errors: [calls][blocks][candidates], see `Calls.errors`.
    """

    blocks: tuple[str, ...]
    candidates: tuple[FrameMask, ...]
    flops: list[list[float]]
    total: float
    errors: list[list[list[float]]] = field(default_factory=list)

    @staticmethod
    def of(calls: Calls) -> Measurements:
        """What is known before a call was measured: the costs."""
        total = program_cost(calls.dense).total
        return Measurements(calls.blocks, calls.candidates, calls.flops(), total)

    def worst(self) -> np.ndarray:
        """[blocks, candidates]: the largest error over the calls."""
        largest: np.ndarray = self._errors().max(axis=0)
        return largest

    def within(self, threshold: float) -> MaskTable:
        """The sparsest mask of each block whose error stays within a bound on every call.

        Raises:
            OptionError: the threshold is not positive.
        """
        if not threshold > 0:
            raise OptionError(f"threshold must be more than 0, got {threshold}")
        worst = self.worst()
        chosen: list[int | None] = []
        for b, costs in enumerate(self.flops):
            fit = [c for c in self._open(b) if worst[b, c] <= threshold]
            chosen.append(min(fit, key=costs.__getitem__) if fit else None)
        return self._table(chosen)

    def for_ratio(self, ratio: float) -> MaskTable:
        """The table with the least error whose model is ``ratio`` times cheaper than dense.

        Errors of blocks add up as squares, means over the calls: a knapsack in which every block
        takes one of its masks or none.

        Raises:
            OptionError: no table is that cheap, or the ratio is less than one.
        """
        if not ratio >= 1:
            raise OptionError(f"target ratio must be at least 1, got {ratio}")
        flops = np.array(self.flops)
        blocks, choices = flops.shape
        budget = self.total / ratio - (self.total - flops[:, -1].sum())
        least = flops.min(axis=1).sum()
        if budget < least:
            most = self.total / (self.total - flops[:, -1].sum() + least)
            raise OptionError(
                f"target ratio {ratio} is out of reach: the sparsest candidates in every block "
                f"make the model {most:.3f} times cheaper"
            )
        error = np.zeros((blocks, choices))
        error[:, :-1] = np.square(self._errors()).mean(axis=0)
        allowed = np.zeros((blocks, choices))
        allowed[:, -1] = 1
        for b in range(blocks):
            allowed[b, self._open(b)] = 1
        solved = milp(
            error.ravel() / max(error.max(), 1e-30),
            integrality=np.ones(error.size),
            bounds=Bounds(0, allowed.ravel()),
            constraints=[
                LinearConstraint(np.kron(np.eye(blocks), np.ones(choices)), 1, 1),
                LinearConstraint(flops.ravel()[None] / self.total, -np.inf, budget / self.total),
            ],
        )
        if solved.x is None:
            raise OptionError(f"target ratio {ratio}: the solver found no table: {solved.message}")
        picks = solved.x.reshape(blocks, choices).argmax(axis=1)
        return self._table([None if c == choices - 1 else int(c) for c in picks])

    def ratio(self, table: MaskTable) -> float:
        """FLOPs of the dense model over those under a table of candidates."""
        column = {mask: c for c, mask in enumerate(self.candidates)}
        pairs = list(zip(self.flops, table.items(), strict=True))
        saved = sum(row[-1] - row[column[m]] for row, (_, m) in pairs if m is not None)
        return self.total / (self.total - saved)

    def _errors(self) -> np.ndarray:
        if not self.errors:
            raise InputError("mask search: no forward call has been measured")
        errors = np.array(self.errors, dtype=np.float64)
        if len(bad := np.argwhere(~np.isfinite(errors))):
            call, block, column = bad[0]
            raise InputError(
                f"mask search: the error of {self.candidates[column]} in {self.blocks[block]} at "
                f"call {call} is {errors[call, block, column]}, wanted a number; check the "
                "weights, the inputs and the dtype"
            )
        return errors

    def _open(self, block: int) -> list[int]:
        """The candidates that change a block."""
        row = self.flops[block]
        return [c for c in range(len(self.candidates)) if row[c] != row[-1]]

    def _table(self, chosen: Sequence[int | None]) -> MaskTable:
        masks = (None if c is None else self.candidates[c] for c in chosen)
        return MaskTable(tuple(zip(self.blocks, masks, strict=True)))


def joint_error(dense: Program, sparse: Program, call: Mapping[str, Any]) -> float:
    """How far a rewritten Program moves the model's result: relative L2 distance."""
    values = dense.values(call)
    with torch.no_grad():
        want = dense.graph_module(*values)[0].double()
        got = sparse.graph_module(*values)[0].double()
    return float((got - want).norm() / want.norm())
