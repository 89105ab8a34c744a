"""Asymmetric token reduction: attention on fewer queries and, separately, fewer keys and values.

Source: AsymRnR, arXiv:2412.11706.  Inside each visual self- or joint-attention the tokens that
are most like another are left out, queries by the likeness of queries, keys and values together
by the likeness of values; dense attention runs on what is left, and every token that was left out
as a query takes the result of the token that it is most like.  Exact: text, tokens that are equal
to what stands for them.  Approximated: the tokens that are left out.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import fx

from fisopt.errors import PreconditionError
from fisopt.passes.schedule import FEATURES, Feature, Measured, Schedule
from fisopt.rewrite.analysis import Attention, result_nodes, results, self_attentions
from fisopt.rewrite.axes import TokenLayout, axes_of
from fisopt.rewrite.partition import Cells, destination_count, destinations, sources_to_keep
from fisopt.rewrite.pass_base import Pass, Stage, Step
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.shorten import Index, Operands, operands_of, shorten

Mode = Literal["replace", "mean"]
State = Literal["none", "store", "load", "measure"]
Ratios = float | tuple[float, ...]
"""A dropped share: one for all blocks, or one for each video block in execution order."""

_MATCH = torch.ops.fisopt.match_tokens.default
_RESTORE = torch.ops.fisopt.restore_tokens.default


@dataclass(frozen=True)
class Reduction(Pass):
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
    """

    stage: ClassVar[Stage] = "attention"

    query: Ratios
    value: Ratios
    destination_stride: Cells
    mode: Mode
    seed: int
    state: State = "none"
    measured: Measured | None = None

    @property
    def name(self) -> str:
        """The name of the pass whose step this is."""
        return "TokenReduction"

    @property
    def stepwise(self) -> bool:
        """Whether what it keeps or measures belongs to a step."""
        return self.state != "none"

    def afresh(self) -> Reduction:
        """Match at this step, where no earlier one of this generation did."""
        return replace(self, state="store") if self.state == "load" else self

    def requires(self, program: Program) -> None:
        """Check the ratios against the blocks, and what they were measured on."""
        blocks, measured = len(program.blocks), self.measured or Measured()
        schedule = f"schedule {measured.source}: " if self.measured is not None else ""
        for feature, ratios in ((f, getattr(self, f)) for f in FEATURES):
            if isinstance(ratios, tuple) and len(ratios) != blocks:
                raise PreconditionError(
                    f"{schedule}{feature} ratios are given for {len(ratios)} blocks, the model has "
                    f"{blocks} video blocks; give one number for all, or one for each",
                    pass_name=self.name,
                )
        layout, model = program.layout, type(program.source.model).__name__
        here = (layout.frames, layout.height, layout.width)
        if measured.model not in ("", model):
            raise PreconditionError(
                f"{schedule}measured on {measured.model}, this is {model}; calibrate for this one",
                pass_name=self.name,
            )
        if measured.grid not in (None, here):
            size = "x".join(map(str, measured.grid or ()))
            raise PreconditionError(
                f"{schedule}measured on {size} tokens, these are {layout}; calibrate for these",
                pass_name=self.name,
            )

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the attention of every block that drops something."""
        if (frames := rewriter.program.layout.frames) <= BOUNDARIES:
            rewriter.note(f"dense: {frames} latent frames are too few to tell tokens from text")
            return
        reducer, every = _Reducer(self, rewriter), rewriter.program.blocks
        for index, call in enumerate(every):
            ratios = {f: _of_block(getattr(self, f), index) for f in FEATURES}
            if any(ratios.values()) or self.state == "measure":
                reducer.block(index, call, ratios)
        shapes = ", ".join(f"{q}x{k}" for q, k in sorted(reducer.shapes))
        if self.state == "measure":
            rewriter.note(f"{reducer.reduced} of {len(every)} blocks measured, attention is dense")
            return
        matched = "matched at an earlier step" if self.state == "load" else "matched at this step"
        rewriter.note(
            f"{reducer.reduced} of {len(every)} blocks reduced, {matched}; seed {self.seed}; "
            f"{len(reducer.shapes)} attention shapes (queries x keys)"
            + (f": {shapes}" if shapes else "")
        )


def _of_block(ratios: Ratios, index: int) -> float:
    return ratios[index] if isinstance(ratios, tuple) else ratios


@dataclass(frozen=True)
class _Side:
    """The queries, or the keys and values, of one attention, and what stays of them.

    Attributes:
        feature: which of the two.
        node: what is matched, [..., before + tokens + after, width].
        grid: frames, rows and columns of its tokens.
        stride: the cells of the grid.
        frames: frames of its sequence dimension, 0 if that carries none.
        before: entries of text before the tokens.
        after: entries of text after the tokens.
        keep: how many sources stay.
    """

    feature: Feature
    node: fx.Node
    grid: Cells
    stride: Cells
    frames: int
    before: int
    after: int
    keep: int

    @property
    def plan(self) -> tuple[object, ...]:
        """What a block's new graph depends on."""
        return (self.feature, self.grid, self.stride, self.keep)

    @property
    def length(self) -> int:
        """Entries that stay, text included."""
        return self.before + destination_count(self.grid, self.stride) + self.keep + self.after


def grid_of(
    node: fx.Node, layout: TokenLayout, stride: Cells
) -> tuple[Cells, Cells, int, int, int] | str:
    """Token grid, cells, frames and text of a sequence [..., S, D], or why it has no grid.

    An attention that sees one frame, or one place in all frames, has a grid of that; a cell
    reaches as far as the grid along what the attention does not see.
    """
    axes, size = axes_of(node), int(node.meta["val"].shape[-2])
    axis = axes[-2] if len(axes) >= 2 else None
    if axis is None:
        if size != layout.tokens_per_frame:
            return f"its sequence of {size} is neither the video's tokens nor one frame's"
        return (1, layout.height, layout.width), (1, *stride[1:]), 0, 0, 0
    frames, before, after = axis.frames, axis.before, axis.after
    if axis.outer == 1 and axis.inner == layout.tokens_per_frame:
        return (frames, layout.height, layout.width), stride, frames, before, after
    if axis.outer == axis.inner == 1:
        return (frames, 1, 1), (stride[0], 1, 1), frames, before, after
    return f"its sequence is {axis}, not the tokens of {layout} frame by frame"


@dataclass(frozen=True)
class _Reduced:
    """A block's new graph, the constants and state it takes and what it returns beside its own."""

    graph_module: fx.GraphModule
    constants: tuple[tuple[int, _Side], ...]
    loads: tuple[tuple[str, tuple[int, ...]], ...]
    stores: tuple[str, ...]
    gauges: tuple[str, ...]


class _Reducer:
    """The state of one run: new graphs by old graph and what stays."""

    def __init__(self, options: Reduction, rewriter: Rewriter) -> None:
        self.options, self.rewriter = options, rewriter
        self.made: dict[tuple[object, ...], _Reduced] = {}
        self.shapes: set[tuple[int, int]] = set()
        self.reduced = 0

    def block(self, index: int, call: fx.Node, ratios: dict[Feature, float]) -> None:
        """Reduce the attentions of one block."""
        where = str(call.meta["fisopt.region"])
        body = self.rewriter.program.callee(call)
        found = self_attentions(body.graph)
        if not found:
            self.rewriter.skip(where, "no self-attention was found in it")
            return
        planned: list[tuple[Attention, Operands, dict[Feature, _Side]]] = []
        for attention in found:
            operands = operands_of(attention)
            sides = operands if isinstance(operands, str) else self._sides(operands, ratios)
            if isinstance(sides, str) or isinstance(operands, str):
                self.rewriter.skip(where, str(sides))
                return
            planned.append((attention, operands, sides))
        if not any(sides for *_, sides in planned):
            self.rewriter.note(f"{where}: the ratios leave every token, dense")
            return
        plans = tuple(tuple(s.plan for s in sides.values()) for *_, sides in planned)
        key = (str(call.target), plans)
        if key not in self.made:
            self.made[key] = self._rewrite(body, planned)
        self._replace(index, call, self.made[key])
        self.reduced += 1
        for _, operands, sides in planned:
            lengths = [
                sides[f].length if f in sides else int(node.meta["val"].shape[-2])
                for f, node in (("query", operands.query), ("value", operands.value))
            ]
            self.shapes.add((lengths[0], lengths[1]))

    def _sides(
        self, operands: Operands, ratios: dict[Feature, float]
    ) -> dict[Feature, _Side] | str:
        """What stays of the queries and of the values; a side that loses nothing is left out."""
        sides: dict[Feature, _Side] = {}
        nodes: dict[Feature, fx.Node] = {"query": operands.query, "value": operands.value}
        for feature, node in nodes.items():
            ratio = 1.0 if self.options.state == "measure" else ratios[feature]
            if not ratio:
                continue
            stride = self.options.destination_stride
            found = grid_of(node, self.rewriter.program.layout, stride)
            if isinstance(found, str):
                return found
            grid, cells, frames, before, after = found
            count = destination_count(grid, cells)
            size = "x".join(map(str, grid))
            if count == 0:
                return (
                    f"destination_stride={stride} leaves no destination on its {size} tokens; "
                    f"use at most {grid}"
                )
            tokens = grid[0] * grid[1] * grid[2]
            keep = sources_to_keep(tokens, count, ratio)
            if count + keep < tokens:
                sides[feature] = _Side(feature, node, grid, cells, frames, before, after, keep)
        return sides

    def _rewrite(
        self,
        body: fx.GraphModule,
        planned: list[tuple[Attention, Operands, dict[Feature, _Side]]],
    ) -> _Reduced:
        """Write the block's graph with shorter attentions."""
        inner = self.rewriter.inside(body)
        twin = dict(zip(body.graph.nodes, inner.graph.nodes, strict=True))
        writer = _Writer(self.options, inner)
        for number, (attention, operands, sides) in enumerate(planned):
            result = twin[attention.result]
            with inner.before(result):
                index = {
                    f: writer.index(number, side, twin[side.node]) for f, side in sides.items()
                }
                if self.options.state == "measure":
                    continue
                new = shorten(
                    inner, _mapped(operands, twin), index.get("query"), index.get("value")
                )
                if (side := sides.get("query")) is not None:
                    place = (new.meta["val"].ndim - 2, side.frames, side.before, side.after)
                    new = inner.call(_RESTORE, new, writer.origins[number], *place)
                inner.replace_uses(result, new)
        for _, node in (*writer.stores, *writer.gauges):
            inner.also_return(node)
        inner.erase_dead()
        inner.program.graph_module.recompile()
        return _Reduced(
            inner.program.graph_module,
            tuple(writer.constants),
            tuple(writer.loads),
            tuple(name for name, _ in writer.stores),
            tuple(name for name, _ in writer.gauges),
        )

    def _replace(self, index: int, call: fx.Node, made: _Reduced) -> None:
        """Call the new graph in the place of the old one."""
        rewriter, where = self.rewriter, call.meta["fisopt.region"]
        outputs = results(rewriter.program.callee(call).graph)
        old = result_nodes(call, len(outputs))
        device = next(iter(outputs)).meta["val"].device
        extra = [
            rewriter.load(f"{where}/{name}", shape, torch.int32, device)
            for name, shape in made.loads
        ]
        extra += [self._chosen(index, number, side, device) for number, side in made.constants]
        with rewriter.before(call):
            own = [n for n in call.args if isinstance(n, fx.Node)]
            pieces = rewriter.call_block(
                made.graph_module,
                [*own, *extra],
                like=call,
                name=f"{call.target}_r",
                axes=[*map(axes_of, outputs), *[()] * (len(made.stores) + len(made.gauges))],
            )
            for node, piece in zip(old, pieces, strict=False):
                if node is not None:
                    rewriter.replace_uses(node, piece)
        rest = iter(pieces[len(outputs) :])
        for name in made.stores:
            rewriter.store(f"{where}/{name}", next(rest))
        for name in made.gauges:
            rewriter.gauge(f"{where}/{name}", next(rest))

    def _chosen(self, index: int, number: int, side: _Side, device: torch.device) -> fx.Node:
        """The destinations of one attention's queries or values: a constant of the Program."""
        key = (self.options.seed, index, number, side.feature)
        chosen = destinations(side.grid, side.stride, *key)
        name = f"destinations_block{index}_attention{number}_{side.feature}"
        return self.rewriter.buffer(name, chosen.to(device))


def _mapped(operands: Operands, twin: dict[fx.Node, fx.Node]) -> Operands:
    """The operands of an attention in the copy of its graph."""
    query, key, value = (twin[n] for n in (operands.query, operands.key, operands.value))
    return Operands(query, key, value, operands.key_dim, tuple(twin[n] for n in operands.path))


class _Writer:
    """Writes the indices of one block's new graph and collects what crosses its border."""

    def __init__(self, options: Reduction, inner: Rewriter) -> None:
        self.options, self.inner = options, inner
        self.origins: dict[int, fx.Node] = {}
        self.constants: list[tuple[int, _Side]] = []
        self.loads: list[tuple[str, tuple[int, ...]]] = []
        self.stores: list[tuple[str, fx.Node]] = []
        self.gauges: list[tuple[str, fx.Node]] = []

    def index(self, number: int, side: _Side, node: fx.Node) -> Index:
        """What stays of a sequence: matched here, or taken from an earlier step."""
        loaded = self.options.state == "load"
        kept, origin = (self._loaded if loaded else self._matched)(number, side, node)
        if side.feature == "query" and origin is not None:
            self.origins[number] = origin
        return Index(kept, origin if self.options.mode == "mean" else None)

    def _has_origin(self, side: _Side) -> bool:
        return side.feature == "query" or self.options.mode == "mean"

    def _matched(self, number: int, side: _Side, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        call, name = self.inner.call, f"attention{number}.{side.feature}"
        count = destination_count(side.grid, side.stride)
        device = node.meta["val"].device
        given = self.inner.argument(
            f"destinations_{number}_{side.feature}", (count,), torch.int64, device
        )
        self.constants.append((number, side))
        match = call(_MATCH, node, given, side.keep, side.before, side.after)
        kept, origin, profile = (call(operator.getitem, match, i) for i in range(3))
        if self.options.state == "store":
            self.stores.append((f"{name}.kept", kept))
            if self._has_origin(side):
                self.stores.append((f"{name}.origin", origin))
        self.gauges.append((f"{name}.profile", profile))
        return kept, origin

    def _loaded(self, number: int, side: _Side, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        value, name = node.meta["val"], f"attention{number}.{side.feature}"
        lead = tuple(value.shape[:-2])
        taken = {"kept": (*lead, side.length), "origin": (*lead, int(value.shape[-2]))}
        if not self._has_origin(side):
            del taken["origin"]
        nodes = {}
        for what, shape in taken.items():
            self.loads.append((f"{name}.{what}", shape))
            nodes[what] = self.inner.argument(
                f"{what}_{number}_{side.feature}", shape, torch.int32, value.device
            )
        return nodes["kept"], nodes.get("origin")


@dataclass(frozen=True)
class TokenReduction(Pass):
    """Run visual attention on fewer queries and, separately, on fewer keys and values.

    Before and after, inside a block::

        %y = aten::scaled_dot_product_attention(%q, %k, %v)

        %m, %o, ... = fisopt::match_tokens(%q, @destinations, 40, 0, 0)
        %n, ...     = fisopt::match_tokens(%v, @destinations, 60, 0, 0)
        %r          = fisopt::reduce_tokens(%q, %m, None, 2)      (keys and values by %n)
        %s          = aten::scaled_dot_product_attention(%r, ...)
        %y          = fisopt::restore_tokens(%s, %o, 2, 5, 0, 0)

    Per head and batch item.  Text joined to the sequence is never reduced; masks lose the rows and
    columns of the tokens that are left out; cross-attention is not touched.  A ratio of 0 leaves
    the attention as it was, to the bit.

    Attributes:
        query: dropped share of the queries, in [0, 1); at most the sources can be dropped, so
            the share is capped at 1 - destinations / tokens.
        value: dropped share of the keys and values.
        destination_stride: frames, rows and columns of a cell, one random token of which always
            stays and stands for tokens that are left out.  With two latent frames or fewer
            every block is dense.
        cache_steps: steps for which one match is used; 1 matches at every step.  The ratios are
            those of the step at which the match is made.
        mode: a kept token is taken as it is ("replace") or is the mean of all for which it stands.
        seed: of the choice of destinations; the same seed gives the same output.
        schedule: ratios by block and step in the place of ``query`` and ``value``, or its file.

    Source: AsymRnR, arXiv:2412.11706, and its code; ``mode="mean"`` is ours.
    """

    stage: ClassVar[Stage] = "attention"

    query: float = 0.0
    value: float = 0.0
    destination_stride: Cells = (2, 2, 2)
    cache_steps: int = 1
    mode: Mode = "replace"
    seed: int = 0
    schedule: Schedule | str | Path | None = None

    def __post_init__(self) -> None:
        for feature in FEATURES:
            _check_ratio(feature, getattr(self, feature))
        stride: tuple[object, ...] = tuple(self.destination_stride)
        object.__setattr__(self, "destination_stride", stride)
        if len(stride) != 3 or any(type(s) is not int or s < 1 for s in stride):
            raise ValueError(
                "TokenReduction: destination_stride must be three ints of at least 1 (frames, "
                f"rows, columns), got {stride!r}"
            )
        if type(self.cache_steps) is not int or self.cache_steps < 1:
            raise ValueError(
                "TokenReduction: cache_steps must be an int of at least 1 (1 matches at every "
                f"step), got {self.cache_steps!r}"
            )
        if self.mode not in get_args(Mode):
            raise ValueError(
                f"TokenReduction: mode must be one of {list(get_args(Mode))}, got {self.mode!r}"
            )
        if type(self.seed) is not int:
            raise ValueError(f"TokenReduction: seed must be an int, got {self.seed!r}")
        if isinstance(self.schedule, (str, Path)):
            object.__setattr__(self, "schedule", Schedule.load(self.schedule))
        if self.schedule is not None and (self.query or self.value):
            raise ValueError(
                "TokenReduction: the schedule says what is dropped; leave query and value at 0, "
                f"got {self.query} and {self.value}"
            )

    @property
    def stepwise(self) -> bool:
        """Whether ratios differ between steps, or steps reuse the match of others."""
        return self.cache_steps > 1 or self.schedule is not None

    def at(self, step: Step) -> Reduction | None:
        """What is done at a step; None where nothing is dropped."""
        since = step.index % self.cache_steps
        query: Ratios = self.query
        value: Ratios = self.value
        measured = None
        if isinstance(self.schedule, Schedule):
            column = self.schedule.column(Step(step.index - since, step.count))
            self.schedule.column(step)
            query, value = (self.schedule.ratios(f, column) for f in FEATURES)
            measured = self.schedule.measured
            if not any(query) and not any(value):
                return None
        elif not query and not value:
            return None
        state: State = ("load" if since else "store") if self.cache_steps > 1 else "none"
        return Reduction(
            query, value, self.destination_stride, self.mode, self.seed, state, measured
        )

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite as at a step that makes its own match."""
        steps = self.schedule.steps if isinstance(self.schedule, Schedule) else None
        reduction = self.at(Step(0, steps))
        if reduction is None:
            rewriter.note("dense: nothing is dropped")
            return
        reduction = replace(reduction, state="none")
        reduction.requires(rewriter.program)
        reduction.run(rewriter)


def _check_ratio(name: str, ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(
            f"TokenReduction: {name} is the dropped share and must be in [0, 1), got {ratio!r}"
        )
