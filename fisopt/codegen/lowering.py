"""Passes of lowering: local rewrites of graphs that no other pass sees, checked after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fisopt.concurrency import tracing
from fisopt.errors import LoweringError
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.edit.graph_editor import GraphEditor, computed
from fisopt.rewrite.edit.local import LocalRule, rewrite
from fisopt.rewrite.outline import key_of, value_key


@dataclass(frozen=True)
class LoweringPass:
    """A named step from the operators of Programs to those that compilers and files take.

    Attributes:
        name: what errors call it.
        rules: for a graph and the module whose blocks it calls, the rules to apply until none does.
    """

    name: str
    rules: Callable[[fx.GraphModule, fx.GraphModule], Sequence[LocalRule]]

    def run(self, module: fx.GraphModule, root: fx.GraphModule) -> None:
        """Rewrite a graph in place.

        Raises:
            LoweringError: what came out is no valid graph of the same arguments and results; the
                pass is named.
        """
        editor, before = GraphEditor.of(module, self.name), signature(module.graph)
        with tracing():
            if rewrite(editor, self.rules(module, root)).applied:
                check(module, before, self.name)


def run_passes(
    passes: Iterable[LoweringPass], module: fx.GraphModule, root: fx.GraphModule
) -> None:
    """Run passes over a graph, in place, and drop what is dead afterwards."""
    for each in passes:
        each.run(module, root)
    module.graph.eliminate_dead_code()


def signature(graph: fx.Graph) -> tuple[Any, ...]:
    """Shape, type and device of every argument and every result."""
    taken = (n for n in graph.nodes if n.op == "placeholder")
    return tuple(map(value_key, taken)), tuple(map(value_key, results(graph)))


def check(module: fx.GraphModule, before: tuple[Any, ...], name: str) -> None:
    """Check a graph that a pass has rewritten.

    Args:
        module: the graph.
        before: its signature before.
        name: the pass.

    Raises:
        LoweringError: the graph is malformed, the value of a node is not what its operator makes
            of its operands, or the signature has changed.
    """
    try:
        module.graph.lint()
    except Exception as error:
        raise LoweringError(f"{name}: {error}") from error
    mode = GraphEditor.of(module, name).mode
    known: dict[str, Any] = {}  # blocks repeat: what was computed once holds for all
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        if "val" not in node.meta:
            raise LoweringError(f"{name}: {node.format_node()} has no value")
        if node.op != "call_function":
            continue
        given = fx.node.map_arg((node.args, node.kwargs), lambda n: repr(value_key(n)))
        key = repr((node.target, given))
        if key not in known:
            known[key] = _value(node, mode, name)
        if known[key] != value_key(node):
            raise LoweringError(
                f"{name}: {node.format_node()} makes {known[key]}, its value says {value_key(node)}"
            )
    if (after := signature(module.graph)) != before:
        raise LoweringError(f"{name}: takes and returns {after}, before it was {before}")


def _value(node: fx.Node, mode: Any, name: str) -> Any:
    """Shape, type and device of what an operator makes of its operands."""
    try:
        return key_of(computed(node, mode))
    except Exception as error:
        raise LoweringError(
            f"{name}: {node.format_node()} does not take its operands: {type(error).__name__}: "
            f"{error}"
        ) from error
