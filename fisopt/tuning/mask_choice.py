"""Mask choice: the best table of masks for a bound on the error, or for a cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from fisopt.errors import InputError, OptionError
from fisopt.passes.tiling.mask_table import MaskTable
from fisopt.passes.tiling.masks import FrameMask
from fisopt.rewrite.cost import program_cost
from fisopt.tuning.mask_errors import Calls


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
                f"make the model {most:.3f} times cheaper; give a lower ratio or sparser candidates"
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
            raise InputError(
                "mask search: no forward call has been measured; give one prompt or more"
            )
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
