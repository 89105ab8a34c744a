"""Edit a graph of plain operators, one that no pass sees any more: values, and no frame axes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fisopt.errors import LoweringError
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.tracing.trace import MODE
from fisopt.rewrite.tracing.writes import mutates


class GraphEditor:
    """Edit a graph, checking that what stands for a node has its value's shape, type and device.

    Args:
        graph: the graph.
        name: of what edits it, for errors.
        mode: makes the values of new nodes; without one they have none and nothing is checked.
    """

    def __init__(self, graph: fx.Graph, name: str, mode: Any = None) -> None:
        self.graph, self.name, self.mode = graph, name, mode

    @staticmethod
    def of(module: fx.GraphModule, name: str) -> GraphEditor:
        """An editor of a module's graph."""
        return GraphEditor(module.graph, name, module.meta.get(MODE))

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Insert new nodes before a node."""
        with self.graph.inserting_before(node):
            yield

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert ``target(*args, **kwargs)`` here."""
        node = self.graph.call_function(target, args, kwargs)
        if self.mode is not None:
            node.meta["val"] = computed(node, self.mode)
        return node

    def copy(self, body: fx.Graph, args: Any) -> Any:
        """Insert a graph here, called with some arguments; return what it returns."""
        holders = (n for n in body.nodes if n.op == "placeholder")
        return self.graph.graph_copy(body, dict(zip(holders, args, strict=True)))

    def replace_uses(self, old: fx.Node, new: Any) -> None:
        """Let a node stand for another, or some nodes for its results; erase what that leaves dead.

        Raises:
            LoweringError: a value differs in shape, type or device, or a result has no node.
        """
        if isinstance(new, fx.Node):
            self._put(old, new)
        else:
            for user in list(old.users):
                piece = new[user.args[1]] if user.target is operator.getitem else None
                if not isinstance(piece, fx.Node):
                    raise LoweringError(
                        f"{self.name}: {old.format_node()}: what {user} reads is no tensor"
                    )
                self._put(user, piece)
        self._erase(old)

    def _put(self, old: fx.Node, new: fx.Node) -> None:
        known = self.mode is not None and "val" in old.meta and "val" in new.meta
        if known and value_key(old) != value_key(new):
            raise LoweringError(
                f"{self.name}: {old.format_node()} is {value_key(old)}, what stands for it now, "
                f"{new}, is {value_key(new)}; wanted the same shape, type and device"
            )
        old.replace_all_uses_with(new, lambda user: user is not new)
        self._erase(old)

    def erase_dead(self) -> None:
        """Nothing: what an edit leaves dead goes with it, and nothing else does."""

    def _erase(self, node: fx.Node) -> None:
        """Erase a node that nobody uses, and what it alone used."""
        if node.users or node._erased or node.op in ("placeholder", "output") or mutates(node):
            return
        operands = node.all_input_nodes
        self.graph.erase_node(node)
        for operand in operands:
            self._erase(operand)


def computed(node: fx.Node, mode: Any) -> Any:
    """The value of an operator's call, from those of its operands."""
    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with mode, torch.no_grad():
        return target(*args, **kwargs)
