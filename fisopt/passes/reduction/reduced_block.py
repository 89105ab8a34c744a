"""Blocks whose attention is reduced: their new graphs, and what those take and return."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fisopt.passes.reduction.features import Feature
from fisopt.passes.reduction.reduced_side import Side, grid_of
from fisopt.rewrite.analysis.structure import (
    Attention,
    attentions,
    no_self_attention,
    self_attentions,
)
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.block import Block
from fisopt.rewrite.cost import graph_cost
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.operands import Operands, of_one_sequence, operands_of
from fisopt.rewrite.edit.shorten import Index, cannot_shorten, shorten
from fisopt.rewrite.partition import (
    Cells,
    destination_count,
    destinations_in_cells,
    sources_to_keep,
)
from fisopt.rewrite.rewriter import Rewriter

Mode = Literal["replace", "mean"]
State = Literal["none", "store", "load", "measure"]
Search = Literal["all", "near"]

_MATCH = torch.ops.fisopt.match_tokens.default
_MATCH_NEARBY = torch.ops.fisopt.match_nearby.default
_RESTORE = torch.ops.fisopt.restore_tokens.default


@dataclass(frozen=True)
class Matching:
    """How tokens are matched at one denoising step.

    Attributes:
        stride: frames, rows and columns of a cell, one token of which always stays.
        mode: what stands for a cell's dropped tokens: one token as it is, or their mean.
        seed: of the choice of destinations.
        state: whether the match is made and forgotten, made and stored, or that of an earlier
            step; "measure" matches every block and leaves attention dense.
        draw: which choice of destinations of the seed it is.
        search: whether a token looks among all destinations, or those of the cells around it.
    """

    stride: Cells
    mode: Mode
    seed: int
    state: State
    draw: int
    search: Search


class Reducer:
    """The state of one run: what was reduced, and to which sizes."""

    def __init__(self, options: Matching, rewriter: Rewriter) -> None:
        self.options, self.rewriter = options, rewriter
        self.shapes: set[tuple[int, int]] = set()
        self.reduced = 0
        self._costs: dict[object, tuple[float, float]] = {}
        self._spent = self._saved = 0.0

    @property
    def spent(self) -> float:
        """What matching and moving tokens costs, as a share of the attention that it saves."""
        return self._spent / self._saved if self._saved else 0.0

    def block(self, block: Block, ratios: dict[Feature, float]) -> None:
        """Reduce the attentions of one block."""
        where = block.path
        found = self._found(block.body.graph)
        if not found:
            self.rewriter.skip(where, no_self_attention(block.body.graph))
            return
        planned: list[tuple[Attention, Operands, dict[Feature, Side]]] = []
        for attention in found:
            operands = operands_of(attention)
            if isinstance(operands, str):
                self.rewriter.skip(where, operands)
                return
            sides = cannot_shorten(operands) or self._sides(operands, ratios)
            if isinstance(sides, str):
                self.rewriter.skip(where, sides)
                return
            planned.append((attention, operands, sides))
        if not any(sides for *_, sides in planned):
            self.rewriter.note(f"{where}: the ratios leave every token, dense")
            return
        with self.rewriter.edit(block, name="r") as edit:
            for number, each in enumerate(planned):
                self._rewrite(edit, number, *each)
        self.reduced += 1
        form = (str(block.call.target), *ratios.values())
        if form not in self._costs:
            self._costs[form] = _weighed(block.body.graph, edit.graph)
        spent, saved = self._costs[form]
        self._spent, self._saved = self._spent + spent, self._saved + saved
        for _, operands, sides in planned:
            lengths = [
                sides[f].length if f in sides else int(node.meta["val"].shape[-2])
                for f, node in (("query", operands.query), ("value", operands.value))
            ]
            self.shapes.add((lengths[0], lengths[1]))

    def _found(self, graph: fx.Graph) -> list[Attention]:
        """The attentions of the video to itself; one frame may have no axis to know them by."""
        if self.rewriter.program.layout.frames > 1 or any(map(carries_frames, graph.nodes)):
            return self_attentions(graph)
        read = {a: operands_of(a) for a in attentions(graph)}
        return [a for a, r in read.items() if isinstance(r, str) or of_one_sequence(r)]

    def _sides(self, operands: Operands, ratios: dict[Feature, float]) -> dict[Feature, Side] | str:
        """What stays of the queries and of the values; a side that loses nothing is left out."""
        sides: dict[Feature, Side] = {}
        nodes: dict[Feature, fx.Node] = {"query": operands.query, "value": operands.value}
        for feature, node in nodes.items():
            ratio = 1.0 if self.options.state == "measure" else ratios[feature]
            if not ratio:
                continue
            stride = self.options.stride
            found = grid_of(node, self.rewriter.program.layout, stride)
            if isinstance(found, str):
                return found
            grid, cells, frames, before, after = found
            f, h, w = (min(a, b) if b == 1 else a for a, b in zip(cells, grid, strict=True))
            cells = (f, h, w)  # of one entry, such as the one column of tokens of a row
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
                sides[feature] = Side(feature, node, grid, cells, frames, before, after, keep)
        return sides

    def _rewrite(
        self,
        edit: BlockEdit,
        number: int,
        attention: Attention,
        operands: Operands,
        sides: dict[Feature, Side],
    ) -> None:
        """Write one attention of the block on shorter sequences."""
        result = edit.twin(attention.result)
        with edit.before(result):
            found = {f: _Match(self.options, edit, number, side) for f, side in sides.items()}
            if self.options.state == "measure":
                return
            index = {f: match.index for f, match in found.items()}
            mapped = _mapped(operands, edit)
            new = shorten(edit, mapped, index.get("query"), index.get("value"))
            if (side := sides.get("query")) is not None:
                place = (new.meta["val"].ndim - 2, side.frames, side.before, side.after)
                new = edit.call(_RESTORE, new, found["query"].origin, *place)
            edit.replace_uses(result, new)


def _weighed(before: fx.Graph, after: fx.Graph) -> tuple[float, float]:
    """What a reduction costs beside attention, in FLOPs, and what it saves of that."""
    dense, short = graph_cost(before), graph_cost(after)
    attention = "self-attention"
    saved = dense.flops[attention] - short.flops[attention]
    return short.work - dense.work + saved, saved


def _mapped(operands: Operands, edit: BlockEdit) -> Operands:
    """The operands of an attention in the copy of its graph."""
    query, key, value = (edit.twin(n) for n in (operands.query, operands.key, operands.value))
    return Operands(query, key, value, operands.key_dim, tuple(map(edit.twin, operands.path)))


class _Match:
    """What stays of one sequence, and what stands for the rest: found here, or at an earlier step.

    Attributes:
        index: for `shorten`.
        origin: what stands for each entry; None where nothing asks for it.
    """

    def __init__(self, options: Matching, edit: BlockEdit, number: int, side: Side) -> None:
        self.options, self.edit, self.number, self.side = options, edit, number, side
        self.node = edit.twin(side.node)
        loaded = options.state == "load"
        kept, self.origin = self._loaded() if loaded else self._matched()
        self.index = Index(kept, self.origin if options.mode == "mean" else None)

    @property
    def _name(self) -> str:
        return f"attention{self.number}.{self.side.feature}"

    @property
    def _held(self) -> str:
        """The name by which a match is kept for later steps: its indices are of one grid."""
        return f"{self._name}.{'x'.join(map(str, self.side.grid))}"

    @property
    def _has_origin(self) -> bool:
        return self.side.feature == "query" or self.options.mode == "mean"

    def _matched(self) -> tuple[fx.Node, fx.Node | None]:
        edit, options = self.edit, self.options
        measures = options.state == "measure"
        match = edit.call(*self._call(), *([True] if measures else []))
        kept, origin, lost = (edit.call(operator.getitem, match, i) for i in range(3))
        if options.state == "store":
            edit.store(f"{self._held}.kept", kept)
            if self._has_origin:
                edit.store(f"{self._held}.origin", origin)
        edit.measure(f"{self._name}.{'profile' if measures else 'lost'}", lost)
        return kept, origin

    def _call(self) -> tuple[Any, ...]:
        """The operator that matches, and its operands; where tokens are is a constant."""
        options, side, block = self.options, self.side, self.edit.block.index
        draw = (options.draw,) if options.draw else ()
        key = (options.seed, block, self.number, side.feature, *draw)
        chosen, corner = destinations_in_cells(side.grid, side.stride, *key)
        place = (side.keep, side.before, side.after)
        held = self._constant("destinations", chosen)
        if options.search == "all":
            return _MATCH, self.node, held, *place
        cells = (self._constant("corner", corner), side.grid, side.stride)
        return _MATCH_NEARBY, self.node, held, *cells, *place

    def _constant(self, what: str, value: torch.Tensor) -> fx.Node:
        number, feature = self.number, self.side.feature
        name = f"{what}_block{self.edit.block.index}_attention{number}_{feature}"
        device = self.node.meta["val"].device
        return self.edit.buffer(name, value.to(device), f"{what}_{number}_{feature}")

    def _loaded(self) -> tuple[fx.Node, fx.Node | None]:
        value, side = self.node.meta["val"], self.side
        lead = tuple(value.shape[:-2])

        def load(what: str, length: int) -> fx.Node:
            name, sizes = f"{self._held}.{what}", (*lead, length)
            return self.edit.load(name, sizes, torch.int32, value.device)

        kept = load("kept", side.length)
        return kept, load("origin", int(value.shape[-2])) if self._has_origin else None
