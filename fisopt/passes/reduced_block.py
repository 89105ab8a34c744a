"""Blocks whose attention is reduced: their new graphs, and what those take and return."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from fisopt.passes.reduced_side import Side, grid_of
from fisopt.passes.schedule import Feature
from fisopt.rewrite.analysis import (
    Attention,
    attentions,
    result_nodes,
    results,
    self_attentions,
)
from fisopt.rewrite.axes import axes_of, carries_frames
from fisopt.rewrite.operands import Operands, of_one_sequence, operands_of
from fisopt.rewrite.partition import Cells, destination_count, destinations, sources_to_keep
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.shorten import Index, cannot_shorten, shorten

Mode = Literal["replace", "mean"]
State = Literal["none", "store", "load", "measure"]

_MATCH = torch.ops.fisopt.match_tokens.default
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
    """

    stride: Cells
    mode: Mode
    seed: int
    state: State
    draw: int = 0


@dataclass(frozen=True)
class _Reduced:
    """A block's new graph, the constants and state it takes and what it returns beside its own."""

    graph_module: fx.GraphModule
    constants: tuple[tuple[int, Side], ...]
    loads: tuple[tuple[str, tuple[int, ...]], ...]
    stores: tuple[str, ...]
    gauges: tuple[str, ...]


class Reducer:
    """The state of one run: new graphs by old graph and what stays."""

    def __init__(self, options: Matching, rewriter: Rewriter) -> None:
        self.options, self.rewriter = options, rewriter
        self.made: dict[tuple[object, ...], _Reduced] = {}
        self.shapes: set[tuple[int, int]] = set()
        self.reduced = 0

    def block(self, index: int, call: fx.Node, ratios: dict[Feature, float]) -> None:
        """Reduce the attentions of one block."""
        where = str(call.meta["fisopt.region"])
        body = self.rewriter.program.callee(call)
        found = self._found(body.graph)
        if not found:
            self.rewriter.skip(where, "no self-attention was found in it")
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
        body: fx.GraphModule,
        planned: list[tuple[Attention, Operands, dict[Feature, Side]]],
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
            rewriter.measure(f"{where}/{name}", next(rest))

    def _chosen(self, index: int, number: int, side: Side, device: torch.device) -> fx.Node:
        """The destinations of one attention's queries or values: a constant of the Program."""
        draw = (self.options.draw,) if self.options.draw else ()
        key = (self.options.seed, index, number, side.feature, *draw)
        chosen = destinations(side.grid, side.stride, *key)
        name = f"destinations_block{index}_attention{number}_{side.feature}"
        return self.rewriter.buffer(name, chosen.to(device))


def _mapped(operands: Operands, twin: dict[fx.Node, fx.Node]) -> Operands:
    """The operands of an attention in the copy of its graph."""
    query, key, value = (twin[n] for n in (operands.query, operands.key, operands.value))
    return Operands(query, key, value, operands.key_dim, tuple(twin[n] for n in operands.path))


def _held(number: int, side: Side) -> str:
    """The name by which a match is kept for later steps: its indices are of one grid."""
    return f"attention{number}.{side.feature}.{'x'.join(map(str, side.grid))}"


class _Writer:
    """Writes the indices of one block's new graph and collects what crosses its border."""

    def __init__(self, options: Matching, inner: Rewriter) -> None:
        self.options, self.inner = options, inner
        self.origins: dict[int, fx.Node] = {}
        self.constants: list[tuple[int, Side]] = []
        self.loads: list[tuple[str, tuple[int, ...]]] = []
        self.stores: list[tuple[str, fx.Node]] = []
        self.gauges: list[tuple[str, fx.Node]] = []

    def index(self, number: int, side: Side, node: fx.Node) -> Index:
        """What stays of a sequence: matched here, or taken from an earlier step."""
        loaded = self.options.state == "load"
        kept, origin = (self._loaded if loaded else self._matched)(number, side, node)
        if side.feature == "query" and origin is not None:
            self.origins[number] = origin
        return Index(kept, origin if self.options.mode == "mean" else None)

    def _has_origin(self, side: Side) -> bool:
        return side.feature == "query" or self.options.mode == "mean"

    def _matched(self, number: int, side: Side, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
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
            self.stores.append((f"{_held(number, side)}.kept", kept))
            if self._has_origin(side):
                self.stores.append((f"{_held(number, side)}.origin", origin))
        self.gauges.append((f"{name}.profile", profile))
        return kept, origin

    def _loaded(self, number: int, side: Side, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        value, name = node.meta["val"], _held(number, side)
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
