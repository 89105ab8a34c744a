"""Asymmetric token reduction: attention on fewer queries and, separately, fewer keys and values.

Source: AsymRnR, arXiv:2412.11706.  Inside each visual self- or joint-attention the tokens that
are most like another are left out, queries by the likeness of queries, keys and values together
by the likeness of values; dense attention runs on what is left, and every token that was left out
as a query takes the result of the token that it is most like.  Exact: text, tokens that are equal
to what stands for them.  Approximated: the tokens that are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

from fisopt.checked import choice, flag, is_int
from fisopt.errors import OptionError, OptionTypeError, PreconditionError, shown
from fisopt.passes.reduction.features import FEATURES
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.reduction.reduced_block import Matching, Mode, Reducer, Search, State
from fisopt.passes.reduction.schedule import Schedule
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.partition import Cells
from fisopt.rewrite.pass_base import Stage, Step
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import ALL

Ratios = float | tuple[float, ...]
"""A share to drop: one for all blocks, or one for each video block in execution order."""


@dataclass(frozen=True)
class Reduction(BlockPass):
    """What token reduction does at one denoising step; made by `TokenReduction.at`.

    Attributes:
        query: dropped share of the queries.
        value: dropped share of the keys and values.
        destination_stride: frames, rows and columns of a cell, one token of which always stays.
        mode: what stands for a cell's dropped tokens: one token as it is, or their mean.
        seed: of the choice of destinations.
        state: whether the match is made and forgotten, made and stored, or that of an earlier
            step; "measure" matches every block and leaves attention dense.
        measured: what the ratios were measured on, if they come from a schedule.
        draw: which choice of destinations of the seed it is: 0 in the first cache window.
        search: whether a token looks among all destinations, or those of the cells around it.
        blocks: see `BlockPass`.
    """

    stage: ClassVar[Stage] = "attention"

    query: Ratios
    value: Ratios
    destination_stride: Cells
    mode: Mode
    seed: int
    state: State = "none"
    measured: Measured | None = None
    draw: int = 0
    search: Search = "near"

    @property
    def name(self) -> str:
        """The name of the pass whose step this is."""
        return "TokenReduction"

    @property
    def stepwise(self) -> bool:
        """Whether what it keeps or measures belongs to a step."""
        return self.state != "none" or super().stepwise

    def afresh(self) -> Reduction:
        """Match at this step, where no earlier one of this generation did."""
        return replace(self, state="store") if self.state == "load" else self

    def requires(self, program: Program) -> None:
        """Check the ratios against the blocks, and what they were measured on."""
        super().requires(program)
        blocks, measured = len(program.block_paths), self.measured or Measured()
        schedule = f"schedule {measured}: " if self.measured is not None else ""
        for feature, ratios in ((f, getattr(self, f)) for f in FEATURES):
            if isinstance(ratios, tuple) and len(ratios) != blocks:
                raise PreconditionError(
                    f"{schedule}{feature} ratios are given for {len(ratios)} blocks, the model has "
                    f"{blocks} video blocks; give one number for all, or one for each",
                    pass_name=self.name,
                )
        layout, model = program.layout, type(program.source.model).__name__
        if measured.model not in ("", model):
            raise PreconditionError(
                f"{schedule}measured on {measured.model}, this is {model}; calibrate for this one",
                pass_name=self.name,
            )
        if (size := measured.other_grid(layout)) and not measured.any_grid:
            raise PreconditionError(
                f"{schedule}measured on {size} tokens, these are {layout}; calibrate for these",
                pass_name=self.name,
            )

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the attention of every block that drops something."""
        if 1 < (frames := rewriter.program.layout.frames) <= BOUNDARIES:
            rewriter.note(f"dense: {frames} latent frames are too few to tell tokens from text")
            return
        options = (self.mode, self.seed, self.state, self.draw, self.search)
        how = Matching(self.destination_stride, *options)
        reducer, every = Reducer(how, rewriter), rewriter.program.blocks
        for block in self.chosen(rewriter.program):
            ratios = {f: _of_block(getattr(self, f), block.index) for f in FEATURES}
            if any(ratios.values()) or self.state == "measure":
                reducer.block(block, ratios)
        shapes = ", ".join(f"{q}x{k}" for q, k in sorted(reducer.shapes))
        if self.state == "measure":
            rewriter.note(f"{reducer.reduced} of {len(every)} blocks measured, attention is dense")
            return
        if reducer.spent > 1:
            rewriter.note(
                f"it does not pay: matching and moving tokens costs {reducer.spent:.1f} times the "
                "attention that it saves at this step"
            )
        matched = "matched at an earlier step" if self.state == "load" else "matched at this step"
        cells = "x".join(map(str, self.destination_stride))
        drawn = f"seed {self.seed}" + (f", draw {self.draw}" if self.draw else "")
        rewriter.note(
            f"{reducer.reduced} of {len(every)} blocks reduced, {matched}; {drawn}, cells "
            f"of {cells}; {len(reducer.shapes)} attention shapes (queries x keys)"
            + (f": {shapes}" if shapes else "")
        )
        measured, layout = self.measured or Measured(), rewriter.program.layout
        if size := measured.other_grid(layout):
            rewriter.note(f"schedule {measured} is for {size} tokens, these are {layout}")


def _of_block(ratios: Ratios, index: int) -> float:
    return ratios[index] if isinstance(ratios, tuple) else ratios


@dataclass(frozen=True)
class TokenReduction(BlockPass):
    """Run visual attention on fewer queries and, separately, on fewer keys and values.

    Before and after, inside a block::

        %y = aten::scaled_dot_product_attention(%q, %k, %v)

        %m, %o, ... = fisopt::match_tokens(%q, @destinations, 40, 0, 0)
        %n, ...     = fisopt::match_tokens(%v, @destinations, 60, 0, 0)
        %r          = fisopt::reduce_tokens(%q, %m, None, 2)      (keys and values by %n)
        %s          = aten::scaled_dot_product_attention(%r, ...)
        %y          = fisopt::restore_tokens(%s, %o, 2, 5, 0, 0)

    The pass matches tokens for each head and batch item. It never reduces text joined to the
    sequence, nor cross-attention; it removes the rows and columns of dropped tokens from masks.
    With a ratio of 0 the attention is bit-identical.

    Attributes:
        query: share of the queries to drop, in [0, 1), capped at 1 - destinations / tokens, because
            the pass never drops a destination.
        value: share of the keys and values to drop.
        destination_stride: frames, rows and columns of a cell. One random token of each cell is a
            destination: it always stays and represents dropped tokens. For a single frame (an
            image) a cell is rows and columns; with two frames every block is dense.
        cache_steps: number of steps that share one match; 1 matches at every step. The ratios are
            those of the first of these steps, and the first active one computes the match.
        mode: a kept token stays as it is ("replace"), or becomes the mean of all tokens that it
            represents.
        seed: seed of the choice of destinations; the same seed gives the same output.
        schedule: ratios by block and step, or a file of them, instead of ``query`` and ``value``.
        table: the file of tiers of a ``schedule`` that is a file; see `Schedule.load`.
        redraw: choose new destinations in every cache window instead of once for all steps; every
            window then runs a Program of its own. None: redraw if steps differ anyway, because of
            ``cache_steps`` or a schedule.
        search: a dropped token takes the most similar destination among "all" of them, as
            published, or among those of its own cell and of the cells "near" it, at most 27.
        blocks: the blocks to reduce, see `BlockPass`; the pass uses only their ratios of a
            schedule.
        steps: the steps to reduce at, see `BlockPass`.

    Source: AsymRnR, arXiv:2412.11706, and its code, both modes and both ways to draw.
    """

    stage: ClassVar[Stage] = "attention"

    query: float = 0.0
    value: float = 0.0
    destination_stride: Cells = (2, 2, 2)
    cache_steps: int = 1
    mode: Mode = "replace"
    seed: int = 0
    schedule: Schedule | str | Path | None = None
    table: str | Path | None = None
    redraw: bool | None = None
    search: Search = "near"

    def __post_init__(self) -> None:
        super().__post_init__()
        for feature in FEATURES:
            _check_ratio(feature, getattr(self, feature))
        stride: object = self.destination_stride
        if (
            not isinstance(stride, (tuple, list))
            or len(stride) != 3
            or not all(is_int(s, 1) for s in stride)
        ):
            raise OptionError(
                "TokenReduction: destination_stride must be three ints of at least 1 (frames, "
                f"rows, columns), got {shown(stride)}"
            )
        object.__setattr__(self, "destination_stride", tuple(stride))
        if not is_int(self.cache_steps, 1):
            raise OptionError(
                "TokenReduction: cache_steps must be an int of at least 1 (1 matches at every "
                f"step), got {shown(self.cache_steps)}"
            )
        choice("TokenReduction: mode", self.mode, get_args(Mode))
        choice("TokenReduction: search", self.search, get_args(Search))
        if not is_int(self.seed):
            raise OptionError(f"TokenReduction: seed must be an int, got {shown(self.seed)}")
        if self.redraw is not None:
            flag("TokenReduction: redraw", self.redraw)
        self._load()
        if self.schedule is not None and (self.query or self.value):
            raise OptionError(
                "TokenReduction: the schedule sets the dropped shares; leave query and value at "
                f"0, got {self.query} and {self.value}"
            )

    def _load(self) -> None:
        """Read the files of the schedule; what is read takes the place of their names."""
        if isinstance(self.schedule, (str, Path)):
            object.__setattr__(self, "schedule", Schedule.load(self.schedule, self.table))
        elif self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise OptionTypeError(
                "TokenReduction: schedule must be a Schedule or the path of its file, got "
                f"{shown(self.schedule)}"
            )
        elif self.table is not None:
            raise OptionError(
                f"TokenReduction: table={shown(self.table)} holds tiers without thresholds; give "
                f"schedule= the YAML file of thresholds, got {shown(self.schedule)}"
            )
        object.__setattr__(self, "table", None)

    @property
    def stepwise(self) -> bool:
        """Whether ratios or destinations differ between steps, or steps reuse an older match."""
        differ = self.cache_steps > 1 or self.schedule is not None or self.redraw is True
        return differ or super().stepwise

    def at(self, step: Step) -> Reduction | None:
        """The pass for a step; None if the step drops nothing."""
        if not self.active(step):
            return None
        since = step.index % self.cache_steps
        earlier = (replace(step, index=step.index - past) for past in range(1, since + 1))
        reuses = any(map(self.active, earlier))
        query: Ratios = self.query
        value: Ratios = self.value
        measured = None
        if isinstance(self.schedule, Schedule):
            column = self.schedule.column(replace(step, index=step.index - since).from_noise)
            self.schedule.column(step.from_noise)
            query, value = (self.schedule.ratios(f, column) for f in FEATURES)
            measured = self.schedule.measured
            if not any(query) and not any(value):
                return None
        elif not query and not value:
            return None
        state: State = ("load" if reuses else "store") if self.cache_steps > 1 else "none"
        redraw = self.stepwise if self.redraw is None else self.redraw
        draw = step.from_noise.index // self.cache_steps if redraw and not reuses else 0
        how = (self.destination_stride, self.mode, self.seed, state, measured, draw, self.search)
        return Reduction(query, value, *how, blocks=self.blocks)

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite for a step that computes its own match."""
        steps = self.schedule.steps if isinstance(self.schedule, Schedule) else None
        reduction = replace(self, steps=ALL).at(Step(0, steps))
        if reduction is None:
            rewriter.note("dense: nothing is dropped")
            return
        reduction = replace(reduction, state="none")
        reduction.requires(rewriter.program)
        reduction.run(rewriter)


def _check_ratio(name: str, ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise OptionError(
            f"TokenReduction: {name} is the dropped share and must be in [0, 1), got {shown(ratio)}"
        )
