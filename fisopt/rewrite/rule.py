"""Rules: local rewrites, written as two plain functions over ATen operators.

    FUSE = Rule(
        name="scale and shift",
        pattern=lambda x, s, b: aten.add.Tensor(aten.mul.Tensor(x, s), b),
        replacement=lambda x, s, b: aten.addcmul.default(b, x, s),
        where=lambda match: match.value("b").ndim == match.value("x").ndim,
    )

A pattern is traced and says nothing of shapes; ``where`` does.  Operands that commute are matched
in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from fisopt.checked import Checked
from fisopt.errors import OptionError, OptionTypeError, PassError, shown
from fisopt.rewrite.axes import axes_of, axes_text, same_axes
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.edit.editor import Editor
from fisopt.rewrite.edit.local import Match, Tallies, Tally, rewrite
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import ALL


@dataclass(frozen=True)
class Rule(metaclass=Checked):
    """A pattern, its replacement and a condition.

    Attributes:
        name: the rule's name in reports.
        pattern: a function of tensors that calls operators (``torch.ops.aten...``) and returns one
            value; its literals match only equal literals in the graph.
        replacement: a function of the same parameters that returns a value of the same shape.
        where: a condition that decides whether to replace a match; it sees shapes, dtypes and frame
            axes.
    """

    name: str
    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    where: Callable[[Match], bool]

    def __post_init__(self) -> None:
        for option in ("pattern", "replacement", "where"):
            if not callable(held := getattr(self, option)):
                raise OptionTypeError(
                    f"rule {self.name!r}: {option} must be a function, got {shown(held)}"
                )
        wanted, given = _parameters(self._pattern), _parameters(self._replacement)
        if wanted != given:
            raise OptionError(
                f"rule {self.name!r}: the replacement takes {given}, the pattern {wanted}; "
                "wanted the same names in the same order"
            )
        for what, graph in (("pattern", self._pattern), ("replacement", self._replacement)):
            for node in graph.nodes:
                if node.op in ("call_function", "placeholder", "output") and (
                    node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload)
                ):
                    continue
                raise OptionError(
                    f"rule {self.name!r}: the {what} calls {node.target}; Programs hold operators, "
                    "so write torch.ops.aten.add.Tensor(x, y) instead of x + y"
                )
            idle = [n for n in graph.nodes if n.op != "output" and not n.users]
            if what == "pattern" and idle:
                raise OptionError(f"rule {self.name!r}: the pattern does not use {idle}")
            if not isinstance(_returned(graph), fx.Node):
                raise OptionTypeError(
                    f"rule {self.name!r}: the {what} must return one operator's value"
                )

    @cached_property
    def _pattern(self) -> fx.Graph:
        return self._traced("pattern", self.pattern)

    @cached_property
    def _replacement(self) -> fx.Graph:
        return self._traced("replacement", self.replacement)

    def _traced(self, what: str, function: Callable[..., Any]) -> fx.Graph:
        try:
            return fx.symbolic_trace(function).graph
        except Exception as error:  # what a function of the user's raises, or fx of it
            raise OptionError(
                f"rule {self.name!r}: the {what} cannot be traced: {type(error).__name__}: "
                f"{error}; wanted a plain function that calls operators, without branches on values"
            ) from error

    def matches(self, graph: fx.Graph) -> list[Match]:
        """Every match of the pattern in a graph, in order; matches may overlap."""
        names = _parameters(self._pattern)
        order = {node: i for i, node in enumerate(graph.nodes)}
        found = []
        for match in SubgraphMatcher(self._pattern, remove_overlapping_matches=False).match(graph):
            inputs = dict(zip(names, match.placeholder_nodes, strict=True))
            computed = (n for n in self._pattern.nodes if n.op == "call_function")
            nodes = frozenset(match.nodes_map[n] for n in computed)
            found.append(Match(inputs, match.returning_nodes[0], nodes))
        return sorted(found, key=lambda match: order[match.result])

    def made(self, editor: Editor, match: Match) -> fx.Node | None:
        """Insert the replacement of a match; None if ``where`` rejects the match."""
        if not self.where(match):
            return None
        made: dict[fx.Node, Any] = {}
        for node in self._replacement.nodes:
            if node.op == "placeholder":
                made[node] = match.inputs[str(node.target)]
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), made.__getitem__)
                made[node] = editor.call(node.target, *args, **kwargs)
        new: fx.Node = made[_returned(self._replacement)]
        was, now = match.result.meta["val"], new.meta["val"]
        if was.dtype != now.dtype or not same_axes(axes_of(match.result), axes_of(new)):
            raise PassError(
                f"rule {self.name!r} replaces {was.dtype} with frames "
                f"{axes_text(axes_of(match.result))} by {now.dtype} with frames "
                f"{axes_text(axes_of(new))}; wanted the same of both",
                pass_name=editor.pass_name,
                node=match.result,
            )
        return new


def _parameters(graph: fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if n.op == "placeholder"]


def _returned(graph: fx.Graph) -> Any:
    return graph.output_node().args[0]


@dataclass(frozen=True)
class RulePass(BlockPass):
    """Apply rules one after another to the graphs of all blocks and the code around them.

    Attributes:
        rules: the pass applies each wherever it matches, once; the next rule sees the result.
        blocks: the blocks to apply the rules to, see `BlockPass`; unless these are all blocks, the
            code around them stays unchanged.
        steps: the steps to apply the rules at, see `BlockPass`.
    """

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        rules: object = self.rules
        if not isinstance(rules, (tuple, list)) or any(not isinstance(r, Rule) for r in rules):
            raise OptionTypeError(f"RulePass: rules must be a list of Rule, got {shown(rules)}")
        object.__setattr__(self, "rules", tuple(rules))

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite every distinct graph of the blocks once, then the graph that calls them."""
        tallies = Tallies({rule.name: Tally() for rule in self.rules})
        program = rewriter.program
        alike: dict[fx.GraphModule, list[Block]] = {}
        for block in self.chosen(program):
            alike.setdefault(block.body, []).append(block)
        for blocks in alike.values():
            with rewriter.edit(*blocks, name="ruled") as edit:
                rewrite(edit, self.rules, once=True, tallies=tallies)
        if self.blocks == ALL:
            rewrite(rewriter, self.rules, once=True, tallies=tallies)
        around = " and around them" if self.blocks == ALL else ""
        for name, tally in tallies.by_rule.items():
            rewriter.note(
                f"{name}: {tally.applied} places in {len(alike)} block graphs{around}"
                + (f", {tally.refused} refused by its condition" if tally.refused else "")
            )
