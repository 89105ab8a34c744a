"""The Rewriter: the only door through which a pass edits a Program."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fisopt.errors import PassError
from fisopt.rewrite.analysis import results
from fisopt.rewrite.axes import Axes, FrameAxis, axes_of, carries_frames, set_axes
from fisopt.rewrite.ops.operator import Operator, declared
from fisopt.rewrite.outline import structure
from fisopt.rewrite.program import Program
from fisopt.rewrite.relations import relation, virtual_shape
from fisopt.rewrite.template import MODE
from fisopt.rewrite.writes import mutates

BY = "fisopt.by"


class Rewriter:
    """Edit a Program; every new node gets its value, its axes and the name of its maker.

    Attributes:
        program: the Program being edited, a copy of the one the pass was given.
        changed: whether an edit was made.
        notes: what was applied, one short line each.
        skipped: what could not be applied, as (block, reason).
    """

    def __init__(self, program: Program, pass_name: str) -> None:
        self.program = program
        self.pass_name = pass_name
        self.changed = False
        self.notes: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self._mode = program.graph_module.meta[MODE]
        self._keys = {
            structure(m.graph): name
            for name, m in program.graph_module.named_children()
            if isinstance(m, fx.GraphModule)
        }

    @property
    def graph(self) -> fx.Graph:
        """The graph being edited."""
        return self.program.graph

    def note(self, text: str) -> None:
        """Report something that was applied."""
        self.notes.append(text)

    def skip(self, where: str, reason: str) -> None:
        """Report something that could not be applied: an error when strict."""
        self.skipped.append((where, reason))

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Insert new nodes before a node."""
        with self.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: fx.Node) -> Iterator[None]:
        """Insert new nodes after a node, in the order they are made."""
        with self.graph.inserting_before(node.next):
            yield

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert ``target(*args, **kwargs)`` here; the target is an operator of torch or declared.

        Raises:
            PassError: the operator does not take them.
        """
        target = target.target if isinstance(target, Operator) else target
        if (made := declared(target)) is not None:
            args, kwargs = made.arguments(args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        try:
            with self._mode, torch.no_grad():
                node.meta["val"] = target(*self._fake(args), **self._fake(kwargs))
        except Exception as error:
            given = [str(tuple(n.meta["val"].shape)) for n in node.all_input_nodes]
            raise PassError(
                f"{target} does not take {', '.join(given) or 'its arguments'}: "
                f"{type(error).__name__}: {error}",
                pass_name=self.pass_name,
            ) from error
        node.meta[BY] = self.pass_name
        rule = self._follow if made is None or made.axes is None else made.axes
        set_axes(node, rule(node))
        self.changed = True
        return node

    def _fake(self, args: Any) -> Any:
        return fx.node.map_arg(args, lambda n: n.meta["val"])

    def _follow(self, node: fx.Node) -> Axes:
        """Axes of a new ATen node: those its relation hands on."""
        axes: list[FrameAxis | None] = [None] * len(virtual_shape(node))
        found = relation(node)
        if found.barrier and any(carries_frames(n) for n in node.all_input_nodes):
            raise PassError(
                f"{node.target} has no relation, so the frame axes of its result are unknown; "
                "declare it: fisopt.operator(..., axes=...)",
                pass_name=self.pass_name,
                node=node,
            )
        for link in found.links:
            operand = axes_of(link.operand)
            if link.dim < len(operand) and (axis := operand[link.dim]) is not None:
                axes[link.out] = link.convert(axis)
        return tuple(axes)

    def call_block(
        self,
        callee: fx.GraphModule,
        args: Sequence[fx.Node],
        like: fx.Node,
        name: str,
        axes: Sequence[Axes],
    ) -> list[fx.Node]:
        """Insert a call of a block graph here; callees of equal structure are shared.

        Args:
            callee: the block's graph.
            args: its arguments.
            like: the block call that this one stands for; its identity is handed on.
            name: what to call the callee, made unique.
            axes: the axes of each result.

        Returns:
            One node for each result of the callee.
        """
        target = self._register(callee, name)
        call = self.graph.call_module(target, tuple(args))
        call.meta.update({k: v for k, v in like.meta.items() if k.startswith("fisopt.")})
        call.meta[BY] = self.pass_name
        values = [n.meta["val"] for n in results(callee.graph)]
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

    def buffer(self, name: str, value: torch.Tensor) -> fx.Node:
        """Read a constant tensor here; equal names with equal values are one buffer."""
        module = self.program.graph_module
        path = f"fisopt_{name}"
        held = getattr(module, path, None)
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

    def inside(self, callee: fx.GraphModule) -> Rewriter:
        """A Rewriter on a copy of a block's graph; `call_block` puts the copy in its place."""
        return Rewriter(replace(self.program, graph_module=callee).copy(), self.pass_name)

    def argument(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Add an argument to the graph, after those that it has."""
        holders = [n for n in self.graph.nodes if n.op == "placeholder"]
        with self.graph.inserting_after(holders[-1]):
            node = self.graph.placeholder(name)
        with self._mode:
            node.meta["val"] = torch.empty(tuple(shape), dtype=dtype, device=device)
        node.meta[BY] = self.pass_name
        set_axes(node, (None,) * len(shape))
        self.changed = True
        return node

    def also_return(self, node: fx.Node, position: int | None = None) -> None:
        """Add a result to the graph, after those that it has or at a position among them."""
        output = next(n for n in reversed(self.graph.nodes) if n.op == "output")
        held = results(self.graph)
        at = len(held) if position is None else position
        output.args = ((*held[:at], node, *held[at:]),)
        self.changed = True

    def load(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Take a tensor that an earlier step of the same pass stored under a name."""
        self.program.loads += (f"{self.pass_name}/{name}",)
        return self.argument(f"state_{len(self.program.loads)}", shape, dtype, device)

    def store(self, name: str, node: fx.Node) -> None:
        """Return a tensor for a later step of the same pass to load.

        Raises:
            PassError: the pass stores one under this name already.
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
        """Return a measurement: a tensor that is not finite stops the run by this name.

        One of a single number is there for `Pass.at` to read at the branch's next steps.

        Raises:
            PassError: the pass measures something by this name already, or the node is complex.
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

    def replace_uses(self, old: fx.Node, new: fx.Node) -> None:
        """Point every user of ``old``, except those ``new`` is made of, at ``new``."""
        if tuple(old.meta["val"].shape) != tuple(new.meta["val"].shape):
            raise PassError(
                f"cannot replace {old} {tuple(old.meta['val'].shape)} by {new} "
                f"{tuple(new.meta['val'].shape)}: shapes differ",
                pass_name=self.pass_name,
                node=old,
            )
        made_of = {new}
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        old.replace_all_uses_with(
            new, delete_user_cb=lambda user: user not in made_of and order[user] > order[new]
        )
        self.changed = True

    def erase_dead(self) -> None:
        """Drop nodes that nobody uses and callees that nobody calls."""
        # fx keeps what may draw random numbers, attention with dropout among them
        self.graph.eliminate_dead_code(
            lambda node: node.op in ("placeholder", "output") or mutates(node)
        )
        called = {str(n.target) for n in self.graph.nodes if n.op == "call_module"}
        module = self.program.graph_module
        for name, child in list(module.named_children()):
            if isinstance(child, fx.GraphModule) and name not in called:
                delattr(module, name)
