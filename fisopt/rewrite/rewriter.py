"""The Rewriter: the only door through which a pass edits a Program."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError, PassError
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import Axes, axes_of, set_axes
from fisopt.rewrite.block import EXTRA, Block
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.editor import BY, PART, Editor
from fisopt.rewrite.edit.halves import carried_over, first_half
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.outline import outputs_of, structure
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.trace import MODE


class Rewriter(Editor):
    """Edit a Program; every new node gets its value, its axes and the name of the pass.

    Attributes:
        program: the Program to edit, a copy of the pass's input.
        changed: whether an edit was made.
        notes: what the pass applied, one short line each.
        skipped: what the pass could not apply, as (block, reason).
    """

    def __init__(self, program: Program, pass_name: str) -> None:
        super().__init__(program.graph, program.graph_module.meta[MODE], pass_name)
        self.program = program
        self.notes: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self._keys = {
            structure(m.graph): name
            for name, m in program.graph_module.named_children()
            if isinstance(m, fx.GraphModule)
        }

    def note(self, text: str) -> None:
        """Report something that the pass applied."""
        self.notes.append(text)

    def skip(self, where: str, reason: str) -> None:
        """Report something that the pass could not apply; raise if strict."""
        self.skipped.append((where, reason))

    @contextmanager
    def edit(self, block: Block, *others: Block, name: str = "edited") -> Iterator[BlockEdit]:
        """Edit a copy of a block's graph; leaving the context replaces the block by it.

        Meanwhile this Rewriter inserts new nodes before the block's call. Blocks whose graphs are
        equal afterwards share one graph. If the edit changes nothing, or raises, the block stays as
        it was.

        Args:
            block: the block.
            others: blocks that call the same graph and get the same edit.
            name: suffix for the new graph's name, after the name of the old one.

        Raises:
            PassError: the edit leaves a result of the block without a value.
        """
        if any(other.body is not block.body for other in others):
            raise PassError(
                f"{[b.path for b in (block, *others)]} do not call one graph, so one edit does "
                "not fit them all; edit them one by one",
                pass_name=self.pass_name,
            )
        edit = BlockEdit(
            block,
            self._mode,
            self.pass_name,
            lambda: self._place(block, edit, name),
            lambda subset: self._resized(block, subset),
        )
        with self.before(block.call):
            yield edit
            self._patch(block, edit, edit.place() if edit.changed else None)
        for other in others if edit.changed else ():
            with self.before(other.call):
                self._patch(other, edit, self._place(other, edit, name))

    def untouched(self, block: Block) -> bool:
        """Whether a block's graph is still the model's own."""
        own = self._dense.block(block.path).body
        return block.body is own or structure(block.body.graph) == structure(own.graph)

    @cached_property
    def _dense(self) -> Program:
        return self.program.at(self.program.inputs)

    def _resized(self, block: Block, subset: Subset) -> fx.GraphModule:
        """The graph of the same block at as many tokens as a subset of the video has."""
        if not self.untouched(block):
            raise PassError(
                "another pass has edited the block, so its sizes on a part of the video are not "
                "known; this pass has to come first",
                pass_name=self.pass_name,
                node=block.path,
            )
        refused: CaptureError | None = None
        for grid in subset.grids(self.program.layout):
            try:
                return self.program.resized(grid).block(block.path).body
            except CaptureError as error:
                refused = refused or error
        raise PassError(
            f"the model cannot be captured at as many tokens as {subset}: {refused}",
            pass_name=self.pass_name,
            node=block.path,
        )

    def _place(self, block: Block, edit: BlockEdit, name: str) -> list[fx.Node]:
        """Call an edited graph here; one node for each result, those that it adds last."""
        args = [n for n in block.call.args if isinstance(n, fx.Node)]
        args = edit.passed(args, self, block)
        pieces = self.call_block(
            edit.finished(), args, like=block.call, name=f"{block.call.target}_{name}"
        )
        count = len(results(block.body.graph))
        call = pieces[0] if len(pieces) == 1 else pieces[0].args[0]
        assert isinstance(call, fx.Node)
        call.meta[EXTRA] = block.call.meta.get(EXTRA, 0) + len(pieces) - count
        edit.hand_over(pieces[count:], self, block)
        return pieces[:count]

    def _patch(self, block: Block, edit: BlockEdit, pieces: list[fx.Node] | None) -> None:
        """Point the users of a block's results at what the edit has for them."""
        for i, result in enumerate(results(block.body.graph)):
            old = block.returned(result)
            if (new := edit.values.get(result)) is None and pieces is not None:
                new = pieces[i]
                self._check_whole(block, result, new, old)
            if old is not None and new is not None:
                self.replace_uses(old, new)

    def _check_whole(
        self, block: Block, result: fx.Node, piece: fx.Node, old: fx.Node | None
    ) -> None:
        got, want = list(piece.meta["val"].shape), list(result.meta["val"].shape)
        if old is not None and got != want:
            raise PassError(
                f"the edit leaves result {result.name} without a value: the block returns {got} "
                f"of it, wanted {want}; make that of what `place` returns and `give` it",
                pass_name=self.pass_name,
                node=block.path,
            )

    def call_block(
        self,
        callee: fx.GraphModule,
        args: Sequence[fx.Node],
        like: fx.Node,
        name: str,
        axes: Sequence[Axes] | None = None,
    ) -> list[fx.Node]:
        """Insert a call of a block graph here; callees of equal structure become one.

        Args:
            callee: the block's graph.
            args: its arguments.
            like: the block call that this one replaces; the new call inherits its identity.
            name: name of the callee, made unique.
            axes: the axes of each result; by default those of the callee.

        Returns:
            One node for each result of the callee.
        """
        returned = results(callee.graph)
        axes = [axes_of(n) for n in returned] if axes is None else axes
        target = self._register(callee, name)
        call = self.graph.call_module(target, tuple(args))
        call.meta.update({k: v for k, v in like.meta.items() if k.startswith("fisopt.")})
        call.meta[BY] = self.pass_name
        values = [n.meta["val"] for n in returned]
        self.changed = True
        if len(values) == 1:
            call.meta["val"] = values[0]
            set_axes(call, axes[0])
            return [call]
        call.meta["val"] = tuple(values)
        set_axes(call, ())
        pieces = []
        for i, value in enumerate(values):
            piece = self.graph.call_function(operator.getitem, (call, i))
            piece.meta["val"] = value
            piece.meta[BY] = self.pass_name
            set_axes(piece, axes[i])
            pieces.append(piece)
        return pieces

    def _register(self, callee: fx.GraphModule, name: str) -> str:
        key = structure(callee.graph)
        if key not in self._keys:
            unique, i = name, 1
            while hasattr(self.program.graph_module, unique):
                unique, i = f"{name}_{i}", i + 1
            self.program.graph_module.add_module(unique, callee)
            self._keys[key] = unique
        return self._keys[key]

    def buffer(self, name: str, value: torch.Tensor, argument: str | None = None) -> fx.Node:
        """Read a constant tensor here; equal names and values share one buffer per device."""
        module = self.program.graph_module
        path = f"fisopt_{name}"
        held = getattr(module, path, None)
        if held is not None and held.device != value.device:
            return self.buffer(f"{name}_{value.device.type}", value, argument)
        if held is None:
            module.register_buffer(path, value, persistent=False)
        elif value.device.type != "meta" and not torch.equal(held, value):
            raise PassError(
                f"buffer {path} exists with other values; choose another name",
                pass_name=self.pass_name,
            )
        existing: fx.Node | None = next(
            (n for n in self.graph.nodes if n.op == "get_attr" and n.target == path), None
        )
        if existing is not None:
            return existing
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.get_attr(path)
        node.meta["val"] = self._mode.from_tensor(value)
        node.meta[BY] = self.pass_name
        set_axes(node, (None,) * value.ndim)
        self.changed = True
        return node

    def mark(self, share: Share) -> None:
        """Declare that ranks divide something of the Program from here on."""
        self.program.mesh += (share,)
        self.changed = True

    def load(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Load a tensor that an earlier step of the same pass stored under a name."""
        self.program.loads += (f"{self.pass_name}/{name}",)
        return self.argument(f"state_{len(self.program.loads)}", shape, dtype, device)

    def store(self, name: str, node: fx.Node) -> None:
        """Return a tensor for a later step of the same pass to load.

        Raises:
            PassError: the pass already stores a tensor under this name.
        """
        program, stored = self.program, f"{self.pass_name}/{name}"
        if stored in program.stores:
            raise PassError(
                f"{stored} is stored twice; give every tensor a name of its own",
                pass_name=self.pass_name,
                node=node,
            )
        self.also_return(node, program.own_results + len(program.stores))
        program.stores += (stored,)

    def measure(self, name: str, node: fx.Node) -> None:
        """Return a measurement; if the tensor is not finite, the run stops with this name.

        `Pass.at` can read a measurement of one number at the branch's next steps.

        Raises:
            PassError: the pass already measures something under this name, or the node is complex.
        """
        measured = f"{self.pass_name}/{name}"
        if node.meta["val"].is_complex():
            raise PassError(
                f"{measured} is complex; measure real numbers, such as its absolute value",
                pass_name=self.pass_name,
                node=node,
            )
        if measured in self.program.gauges:
            raise PassError(
                f"{measured} is measured twice; give every measurement a name of its own",
                pass_name=self.pass_name,
                node=node,
            )
        self.also_return(node)
        self.program.gauges += (measured,)

    def forget(self, calls: Sequence[fx.Node]) -> None:
        """Remove all state and measurements that depend on some calls."""
        program = self.program
        held = outputs_of(self.graph)
        behind = set(calls)
        for node in self.graph.nodes:
            behind |= {node} if not behind.isdisjoint(node.all_input_nodes) else set()
        names = dict(
            zip((*program.stores, *program.gauges), held[program.own_results :], strict=True)
        )
        kept = {name: node for name, node in names.items() if node not in behind}
        self.graph.output_node().args = ((*held[: program.own_results], *kept.values()),)
        program.stores = tuple(name for name in program.stores if name in kept)
        program.gauges = tuple(name for name in program.gauges if name in kept)

    def stop(self, *known: fx.Node) -> None:
        """End the Program as soon as some values are known; it returns none of the model's results.

        The measurements up to here take effect, and `Pass.then` chooses what runs the rest of the
        call.

        Raises:
            PassError: another pass has already ended the Program.
        """
        program = self.program
        if program.unfinished:
            raise PassError(
                f"{program.unfinished} has ended the Program already, to decide within a call; "
                "only one pass of a list can",
                pass_name=self.pass_name,
            )
        carried = carried_over(first_half(self.graph, known))
        self.graph.output_node().args = ((),)
        program.out_structure, program.writes, program.puts = pytree.tree_structure(()), (), ()
        program.stores = program.gauges = ()
        for name, node in carried.items():
            self.store(name, node)
        program.unfinished = self.pass_name

    def resume(self, *known: fx.Node) -> None:
        """Start the Program where `stop` with the same values ended it."""
        first = first_half(self.graph, known)
        inside = set(first)
        self.program.resumed = True
        for name, node in carried_over(first).items():
            value = node.meta["val"]
            held = self.load(name, value.shape, value.dtype, value.device)
            set_axes(held, axes_of(node))
            held.meta |= {PART: node.meta[PART]} if PART in node.meta else {}
            node.replace_all_uses_with(held, lambda user: user not in inside)

    def erase_dead(self) -> None:
        """Remove unused nodes and callees."""
        super().erase_dead()
        called = {str(n.target) for n in self.graph.nodes if n.op == "call_module"}
        module = self.program.graph_module
        for name, child in list(module.named_children()):
            if isinstance(child, fx.GraphModule) and name not in called:
                delattr(module, name)
