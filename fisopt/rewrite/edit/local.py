"""Local rewriting: one driver of every change that puts a few operators in the place of others.

A rule finds matches and makes what stands for each; the driver sweeps a graph with every rule,
until none applies where that is asked for, patches the users, drops what died, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import fx

from fisopt.errors import LoweringError

SWEEPS = 100
"""Limit on sweeps of a graph; rules that still match after it are an error."""
Made = fx.Node | Sequence[Any]
"""The replacement of a match: a node, or one for each result of an operator with several."""


@dataclass(frozen=True)
class Match:
    """One place where a pattern matches.

    Attributes:
        inputs: the nodes or plain values that the pattern's parameters match, by name.
        result: the node that holds what the pattern computes.
        nodes: all nodes that the pattern matches, including the result.
    """

    inputs: Mapping[str, Any]
    result: fx.Node
    nodes: frozenset[fx.Node] = frozenset()

    def value(self, name: str) -> Any:
        """The fake tensor or plain value that a parameter matches."""
        held = self.inputs[name]
        return held.meta["val"] if isinstance(held, fx.Node) else held


class Edits(Protocol):
    """What edits a graph: the Rewriter for passes, `GraphEditor` for what is lowered."""

    @property
    def graph(self) -> fx.Graph:
        """The graph being edited."""

    def before(self, node: fx.Node) -> AbstractContextManager[None]:
        """Insert new nodes before a node."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert ``target(*args, **kwargs)`` here."""

    def replace_uses(self, old: fx.Node, new: Any) -> None:
        """Let what was made stand for a node."""

    def erase_dead(self) -> None:
        """Drop what nobody uses any more."""


class LocalRule(Protocol):
    """A local rewrite."""

    @property
    def name(self) -> str:
        """How reports and errors call it."""

    def matches(self, graph: fx.Graph) -> Iterable[Match]:
        """Every place in a graph where the rule may apply, in order; places may overlap."""

    def made(self, editor: Any, match: Match) -> Made | None:
        """Insert, before the match's result, what stands for it now; None leaves it alone."""


@dataclass(frozen=True)
class NodeRule:
    """A rule that starts at one operator and finds the rest of its pattern from there.

    Attributes:
        name: how reports and errors call it.
        at: where it may start: operators, or whether a node is one.
        make: given an editor and such a node, inserts what stands for it; None leaves it alone.
    """

    name: str
    at: Collection[Any] | Callable[[fx.Node], bool]
    make: Callable[[Any, fx.Node], Made | None]

    def matches(self, graph: fx.Graph) -> list[Match]:
        """The nodes at which the rule may start."""
        starts = self.at if callable(self.at) else self._is_one
        return [Match({}, node, frozenset([node])) for node in graph.nodes if starts(node)]

    def made(self, editor: Any, match: Match) -> Made | None:
        """What stands for the node now."""
        return self.make(editor, match.result)

    def _is_one(self, node: fx.Node) -> bool:
        assert isinstance(self.at, Collection)
        return node.op == "call_function" and node.target in self.at


@dataclass
class Tally:
    """How often a rule was applied, and how often it left a match alone."""

    applied: int = 0
    refused: int = 0


@dataclass
class Tallies:
    """The tallies of some rules, over every graph that they were applied to."""

    by_rule: dict[str, Tally] = field(default_factory=dict)

    @property
    def applied(self) -> int:
        """How often any rule was applied."""
        return sum(tally.applied for tally in self.by_rule.values())


def rewrite(
    editor: Edits,
    rules: Sequence[LocalRule],
    *,
    once: bool = False,
    tallies: Tallies | None = None,
) -> Tallies:
    """Apply rules to a graph, one after the other; each sees what those before it made.

    Args:
        editor: edits the graph.
        rules: what to apply.
        once: sweep once for each rule; otherwise until none applies.
        tallies: counts of other graphs, which are added to.

    Raises:
        LoweringError: after `SWEEPS` sweeps there is something to replace still.
    """
    tallies = tallies or Tallies()
    for _ in range(SWEEPS):
        before = tallies.applied
        for rule in rules:
            _sweep(editor, rule, tallies.by_rule.setdefault(rule.name, Tally()))
        if once or tallies.applied == before:
            return tallies
    names = ", ".join(rule.name for rule in rules)
    raise LoweringError(
        f"{names}: after {SWEEPS} sweeps of the graph there is still something to replace; a "
        "replacement must not hold what its own pattern matches"
    )


def _sweep(editor: Edits, rule: LocalRule, tally: Tally) -> None:
    """Apply a rule to the matches that a graph has now and that do not overlap."""
    moved: dict[fx.Node, Any] = {}
    taken: set[fx.Node] = set()
    for found in rule.matches(editor.graph):
        if found.nodes & taken or found.result._erased:
            continue
        inputs = fx.node.map_aggregate(
            dict(found.inputs),
            lambda held: moved.get(held, held) if isinstance(held, fx.Node) else held,
        )
        with editor.before(found.result):
            made = rule.made(editor, replace(found, inputs=inputs))
        if made is None:
            tally.refused += 1
            continue
        tally.applied += 1
        taken |= found.nodes
        moved[found.result] = made
        editor.replace_uses(found.result, made)
    editor.erase_dead()
