"""Editing one graph: every new node gets its value, its axes and the name of its maker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fisopt.errors import PassError
from fisopt.rewrite.axes import Axes, FrameAxis, axes_of, carries_frames, set_axes
from fisopt.rewrite.ops.operator import Operator, declared
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.relations import relation, virtual_shape
from fisopt.rewrite.tracing.writes import mutates

BY = "fisopt.by"
PART = "fisopt.part"
"""The subset of the video that a value was taken on, by dimension."""
GROUP = "fisopt.group"
"""Arguments of a block with one of these are on one subset; all that have none are too."""


class Editing:
    """Edit a graph with frame axes.

    Attributes:
        graph: the graph being edited.
        pass_name: the pass that edits it.
        changed: whether an edit was made.
    """

    def __init__(self, graph: fx.Graph, mode: Any, pass_name: str) -> None:
        self.graph = graph
        self.pass_name = pass_name
        self.changed = False
        self._mode = mode
        self._made: dict[Hashable, fx.Node] = {}
        self._here: fx.Node | None = None

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Insert new nodes before a node."""
        outside, self._here = self._here, node
        try:
            with self.graph.inserting_before(node):
                yield
        finally:
            self._here = outside

    @contextmanager
    def after(self, node: fx.Node) -> Iterator[None]:
        """Insert new nodes after a node, in the order they are made."""
        with self.before(node.next):
            yield

    def once(self, key: Hashable, make: Callable[[], fx.Node]) -> fx.Node:
        """What was made for a key, if it stands before the place where new nodes go."""
        held = self._made.get(key)
        if held is None or (self._here is not None and not held < self._here):
            held = self._made[key] = make()
        return held

    def know(self, key: Hashable, node: fx.Node) -> None:
        """Let `once` find a node that was made in another way."""
        self._made[key] = node

    def bring(self, node: fx.Node, name: str = "brought") -> fx.Node:
        """A node of the Program, as it is seen here."""
        del name
        return node

    def call(self, target: Any, *args: Any, axes: Axes | None = None, **kwargs: Any) -> fx.Node:
        """Insert ``target(*args, **kwargs)`` here.

        Args:
            target: the operator, of torch or declared.
            args: its arguments, nodes among them.
            axes: the frame axis of every dimension of the result, None where it carries none;
                needed only where they do not follow from the operator.
            kwargs: its arguments by name.

        Raises:
            PassError: the operator does not take them, its result has no axes that can be found,
                or others than those that are said.
        """
        target = target.target if isinstance(target, Operator) else target
        if (made := declared(target)) is not None:
            args, kwargs = made.arguments(args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        try:
            self.evaluate(node)
        except Exception as error:
            given = [str(tuple(n.meta["val"].shape)) for n in node.all_input_nodes]
            self.graph.erase_node(node)
            raise PassError(
                f"{target} does not take {', '.join(given) or 'its arguments'}: "
                f"{type(error).__name__}: {error}",
                pass_name=self.pass_name,
            ) from error
        node.meta[BY] = self.pass_name
        if axes is None:
            rule = self._follow if made is None or made.axes is None else made.axes
            axes = rule(node)
        self._check_axes(node, axes)
        set_axes(node, axes)
        self._check_parts(node)
        self.changed = True
        return node

    def evaluate(self, node: fx.Node) -> None:
        """Compute the value of a call node on fake tensors."""
        target: Any = node.target
        values, options = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with self._mode, torch.no_grad():
            node.meta["val"] = target(*values, **options)

    def _check_axes(self, node: fx.Node, axes: Axes) -> None:
        sizes = virtual_shape(node)
        pairs = list(zip(sizes, axes, strict=False))
        if len(axes) not in (0, len(sizes)) or any(a and a.size != size for size, a in pairs):
            raise PassError(
                f"axes {[str(axis) for axis in axes]} do not fit the result of {node.target}, "
                f"{list(sizes)}",
                pass_name=self.pass_name,
                node=node,
            )

    def _check_parts(self, node: fx.Node) -> None:
        """Hand on the parts of the video that operands were taken on; they must agree."""
        if not any(PART in operand.meta for operand in node.all_input_nodes):
            return
        held: dict[int, tuple[fx.Node, object]] = {}
        for link in relation(node).links:
            if (part := link.operand.meta.get(PART, {}).get(link.dim)) is None:
                continue
            operand, other = held.setdefault(link.out, (link.operand, part))
            if other != part:
                raise PassError(
                    f"{node.target} meets {operand} on {other} and {link.operand} on {part} in "
                    f"dimension {link.out}; take both on one of them",
                    pass_name=self.pass_name,
                    node=node,
                )
        node.meta[PART] = {d: part for d, (_, part) in held.items()}

    def _follow(self, node: fx.Node) -> Axes:
        """Axes of a new ATen node: those its relation hands on."""
        axes: list[FrameAxis | None] = [None] * len(virtual_shape(node))
        found = relation(node)
        if found.barrier and any(carries_frames(n) for n in node.all_input_nodes):
            raise PassError(
                f"{node.target} has no relation, so the frame axes of its result are unknown; "
                "give them (`axes=`) or declare it: fisopt.operator(..., axes=...)",
                pass_name=self.pass_name,
                node=node,
            )
        for link in found.links:
            operand = axes_of(link.operand)
            if link.dim < len(operand) and (axis := operand[link.dim]) is not None:
                axes[link.out] = link.convert(axis)
        return tuple(axes)

    def argument(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Add an argument to the graph, after those that it has."""
        holders = [n for n in self.graph.nodes if n.op == "placeholder"]
        taken, unique = {str(n.target) for n in holders}, name
        while unique in taken:
            unique = f"{unique}_more"
        with self.graph.inserting_after(holders[-1]):
            node = self.graph.placeholder(unique)
        node.meta["val"] = self._empty(shape, dtype, device)
        node.meta[BY] = self.pass_name
        set_axes(node, (None,) * len(shape))
        self.changed = True
        return node

    def resize(self, node: fx.Node, shape: Sequence[int]) -> None:
        """Let an argument of the graph have other sizes; whoever calls it passes them."""
        value = node.meta["val"]
        node.meta["val"] = self._empty(shape, value.dtype, value.device)
        self.changed = True

    def _empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
        with self._mode:
            return torch.empty(tuple(shape), dtype=dtype, device=device)

    def also_return(self, node: fx.Node, position: int | None = None) -> None:
        """Add a result to the graph, after those that it has or at a position among them."""
        output = self.graph.output_node()
        held = outputs_of(self.graph)
        at = len(held) if position is None else position
        output.args = ((*held[:at], node, *held[at:]),)
        self.changed = True

    def replace_uses(self, old: fx.Node, new: fx.Node) -> None:
        """Point every user of ``old``, except those ``new`` is made of, at ``new``."""
        if tuple(old.meta["val"].shape) != tuple(new.meta["val"].shape):
            raise PassError(
                f"cannot replace {old} {tuple(old.meta['val'].shape)} by {new} "
                f"{tuple(new.meta['val'].shape)}: shapes differ",
                pass_name=self.pass_name,
                node=old,
            )
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        old.replace_all_uses_with(
            new, delete_user_cb=lambda user: user is not new and order[user] > order[new]
        )
        self.changed = True

    def erase_dead(self) -> None:
        """Drop nodes that nobody uses."""
        self._made.clear()
        # fx keeps what may draw random numbers, attention with dropout among them
        self.graph.eliminate_dead_code(
            lambda node: node.op in ("placeholder", "output") or mutates(node)
        )


class Editor(Editing, ABC):
    """Edit the graph of a Program, or that of one of its blocks."""

    @abstractmethod
    def buffer(self, name: str, value: torch.Tensor, argument: str | None = None) -> fx.Node:
        """Read a constant tensor here.

        Args:
            name: of the constant; equal names with equal values are one buffer of the Program.
            value: the tensor.
            argument: inside a block, what to call the argument by which it enters; blocks that
                differ in constants alone share one graph.
        """

    @abstractmethod
    def load(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Take a tensor that an earlier step of the same pass stored under a name."""

    @abstractmethod
    def store(self, name: str, node: fx.Node) -> None:
        """Return a tensor for a later step of the same pass to load.

        Raises:
            PassError: the pass stores one under this name already.
        """

    @abstractmethod
    def measure(self, name: str, node: fx.Node) -> None:
        """Return a measurement: a tensor that is not finite stops the run by this name.

        One of a single number is there for `Pass.at` to read at the branch's next steps.

        Raises:
            PassError: the pass measures something by this name already, or the node is complex.
        """
