"""A Program that is divided among ranks: its blocks run on a part, its results are whole."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fisopt.passes.sharding.collectives import Ranks
from fisopt.passes.sharding.divided import Divided
from fisopt.passes.sharding.shard import Shard, positions
from fisopt.passes.sharding.what import What
from fisopt.rewrite.analysis.structure import result_nodes, results
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.edit.editor import Editing
from fisopt.rewrite.outline import copied
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.tracing.trace import MODE

aten = torch.ops.aten
Signature = tuple[Shard | None, ...]


@dataclass(frozen=True)
class Part:
    """The graph of a block on one rank.

    Attributes:
        body: the graph.
        takes: how each argument of the block is divided.
        indices: axes; the positions of a rank's entries of each are arguments after those.
        gives: how each result is divided.
        reasons: operators that got their operands whole.
    """

    body: fx.GraphModule
    takes: Signature
    indices: tuple[FrameAxis, ...]
    gives: Signature
    reasons: tuple[str, ...]


class DividedProgram:
    """The state of one run.

    Args:
        rewriter: of the Program.
        ranks: who shares the work.
        what: is divided.

    Attributes:
        blocks: how many blocks run on a part.
        reasons: operators that got their operands whole, and in which blocks.
    """

    def __init__(self, rewriter: Rewriter, ranks: Ranks, what: What) -> None:
        self.rewriter, self.ranks, self.what = rewriter, ranks, what
        self.blocks = 0
        self.reasons: dict[str, list[str]] = {}
        self._indices: dict[FrameAxis, fx.Node] = {}
        self._number: fx.Node | None = None
        self._parts: dict[tuple[str, Signature, Signature], Part] = {}
        self._calls: set[fx.Node] = set()
        graph = rewriter.program.graph
        self.values = Divided(rewriter, graph, {}, ranks, self.index, what)

    def run(self) -> None:
        """Divide what the blocks compute; what the Program returns is whole on every rank."""
        nodes = list(self.rewriter.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        with self.rewriter.after(inputs[-1]):
            for node in inputs:
                if (shard := self.what.given(node)) is not None:
                    self.values.divide(node, shard)
        for node in nodes:
            with self.rewriter.before(node):
                if node.op == "call_module":
                    self._block(node)
                elif node.op == "call_function" and not self._is_result(node):
                    self.values.visit(node, in_block=False)
                elif node.op == "output":
                    node.args = ([self.values.get(n, None) for n in node.args[0]],)
                    self._agree(node)

    def _is_result(self, node: fx.Node) -> bool:
        return node.target is operator.getitem and node.args[0] in self._calls

    def _agree(self, output: fx.Node) -> None:
        """Let all ranks measure what the first one does, for all decide by it."""
        held, count = list(output.args[0]), len(self.rewriter.program.gauges)  # type: ignore[arg-type]
        first = len(held) - count
        agreed = [self.ranks.same(self.rewriter, n) for n in held[first:]]
        output.args = ([*held[:first], *agreed],)

    def index(self, axis: FrameAxis) -> fx.Node:
        """The positions of this rank's entries of an axis."""
        rewriter = self.rewriter
        if axis not in self._indices:
            device = self._device()
            if self._number is None:
                self._number = self.ranks.number(rewriter, device)
            name = f"ranks{self.ranks.count}_{axis}".translate(str.maketrans("+*", "_x"))
            table = rewriter.buffer(name, positions(axis, self.ranks.count).to(device))
            mine = rewriter.call(aten.index_select.default, table, 0, self._number, axes=())
            self._indices[axis] = rewriter.call(aten.select.int, mine, 0, 0, axes=())
        return self._indices[axis]

    def _device(self) -> torch.device:
        """Where the model runs."""
        values = (n.meta["val"] for n in self.rewriter.graph.nodes if n.op == "placeholder")
        found: torch.device = next(v.device for v in values if isinstance(v, torch.Tensor))
        return found

    def _block(self, call: fx.Node) -> None:
        """Call a block on this rank's part of what it takes."""
        values = self.values
        args = [n for n in call.args if isinstance(n, fx.Node)]
        computed = tuple(values.native.get(n) for n in args)
        wanted = tuple(c or values.home(n) for c, n in zip(computed, args, strict=True))
        if not any(wanted):
            return
        part = self._part(str(call.target), computed, wanted)
        given = [values.get(n, s) for n, s in zip(args, part.takes, strict=True)]
        given += [self.index(axis) for axis in part.indices]
        pieces = self.rewriter.call_block(part.body, given, like=call, name=f"{call.target}_part")
        self._calls.add(call)
        self.blocks += any(part.takes)
        for reason in part.reasons:
            self.reasons.setdefault(reason, []).append(call.name)
        own = result_nodes(call, len(pieces))
        for old, new, shard in zip(own, pieces, part.gives, strict=True):
            if old is not None:
                values.put(old, shard, new)
                if shard is None:
                    self.rewriter.replace_uses(old, new)

    def _part(self, name: str, computed: Signature, wanted: Signature) -> Part:
        """The graph of a block on a part; arguments that it needs whole are passed whole."""
        key = (name, computed, wanted)
        if key not in self._parts:
            callee = self.rewriter.program.graph_module.get_submodule(name)
            assert isinstance(callee, fx.GraphModule)
            how = (self.ranks, self.what, self.rewriter.pass_name)
            part, gathered = _divide(callee, wanted, *how)
            again = tuple(
                None if i in gathered and computed[i] is None else shard
                for i, shard in enumerate(wanted)
            )
            if again != wanted:
                part, _ = _divide(callee, again, *how)
            self._parts[key] = part
        return self._parts[key]


def _divide(
    callee: fx.GraphModule, takes: Signature, ranks: Ranks, what: What, pass_name: str
) -> tuple[Part, set[int]]:
    """The graph of a block on parts of its arguments, and which of these it gathers."""
    graph, twins = copied(callee.graph)
    editor = Editing(graph, callee.meta[MODE], pass_name)
    indices: dict[FrameAxis, fx.Node] = {}

    def index(axis: FrameAxis) -> fx.Node:
        if axis not in indices:
            size = axis.at(-(-axis.frames // ranks.count)).size
            like = next(n.meta["val"] for n in graph.nodes if n.op == "placeholder")
            indices[axis] = editor.argument("entries", (size,), torch.int64, like.device)
        return indices[axis]

    values = Divided(editor, callee.graph, twins, ranks, index, what)
    holders = [n for n in callee.graph.nodes if n.op == "placeholder"]
    for holder, shard in zip(holders, takes, strict=True):
        twin = twins[holder]
        if shard is not None:
            editor.resize(twin, shard.sizes(holder.meta["val"].shape, ranks.count))
            values.take(holder, shard, twin)
    for node in callee.graph.nodes:
        with editor.before(twins[node]):
            if node.op == "call_function":
                values.visit(node, in_block=True)
    held = results(callee.graph)
    gives = tuple(values.native.get(n) for n in held)
    output = graph.output_node()
    with editor.before(output):
        given = {n: values.get(n, s) for n, s in zip(held, gives, strict=True)}
    before = callee.graph.output_node()
    output.args = fx.node.map_arg(before.args, given.__getitem__)
    editor.erase_dead()
    body = fx.GraphModule(callee, graph, class_name="Block")
    body.meta[MODE] = callee.meta[MODE]
    gathered = {i for i, holder in enumerate(holders) if holder in values.gathered}
    return Part(body, takes, tuple(indices), gives, tuple(values.reasons)), gathered
