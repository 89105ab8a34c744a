"""Inlining: put callees in the place of calls, and references in the place of operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.errors import LoweringError
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule
from fisopt.rewrite.ops.operator import Operator, declared
from fisopt.rewrite.outline import value_key


def inline_calls(root: fx.GraphModule) -> NodeRule:
    """Every call of a block becomes the block's graph; callees are those of ``root``."""

    def body(editor: GraphEditor, node: fx.Node) -> Any:
        callee = root.get_submodule(str(node.target))
        if not isinstance(callee, fx.GraphModule):
            raise LoweringError(f"{node.format_node()}: {node.target} is not a graph")
        return editor.copy(callee.graph, node.args)

    return NodeRule("call of a block", lambda node: node.op == "call_module", body)


def inline_references(module: fx.GraphModule, *, keep_opaque: bool = False) -> NodeRule:
    """Every declared operator of a module becomes its traced reference, save those of torch's own.

    An operator whose plan is a constant of the graph becomes what the plan says instead: its
    reference is for checking.

    Args:
        module: the graph that the rule is for.
        keep_opaque: leave opaque operators calls.

    Raises:
        LoweringError: a reference cannot be traced.
    """
    traced: dict[Hashable, fx.Graph] = {}

    def written_out(node: fx.Node) -> bool:
        made = declared(node.target)
        return not (made is None or made.definition is None or (keep_opaque and made.opaque))

    def reference(editor: GraphEditor, node: fx.Node) -> Any:
        made = declared(node.target)
        assert made is not None
        function, constants = _implementation(made, node, module)
        places = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node)]
        places = [i for i in places if i not in constants]
        operands: list[Any] = [node.args[i] for i in places]
        rest = tuple(constants.get(i, a) for i, a in enumerate(node.args) if i not in places)
        key = (made, tuple(places), repr(rest), tuple(value_key(n) for n in operands))
        if key not in traced:

            def run(*values: torch.Tensor) -> Any:
                args = [constants.get(i, a) for i, a in enumerate(node.args)]
                for i, value in zip(places, values, strict=True):
                    args[i] = value
                return function(*args)

            with editor.mode, torch.no_grad():  # equal values share a fake: each needs its own
                fakes = [torch.empty_like(n.meta["val"]) for n in operands]
                traced[key] = _trace(run, fakes, made)
        return editor.copy(traced[key], operands)

    return NodeRule("reference of an operator", written_out, reference)


def _trace(run: Callable[..., Any], fakes: list[torch.Tensor], made: Operator) -> fx.Graph:
    try:
        return make_fx(run, pre_dispatch=made.planned is not None)(*fakes).graph
    except Exception as error:
        raise LoweringError(
            f"the reference of {made.target} cannot be traced: {type(error).__name__}: {error}; "
            "write it without looking at values, or declare the operator opaque to keep it a call"
        ) from error


def _implementation(
    made: Operator, node: fx.Node, module: fx.GraphModule
) -> tuple[Callable[..., Any], dict[int, Any]]:
    """The plain-torch form of an operator's call, and its arguments that are known as lists."""
    if made.planned is not None:
        plans = {i: _constant(node.args[i], module) for i in made.plan}
        if all(isinstance(plan, torch.Tensor) for plan in plans.values()):
            return made.planned, {i: plan.tolist() for i, plan in plans.items()}  # type: ignore[union-attr]
    return made.reference, {}


def _constant(argument: Any, module: fx.GraphModule) -> torch.Tensor | None:
    """The tensor that an argument reads, None if it is computed or has no values."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value: Any = operator.attrgetter(str(argument.target))(module)
    return value if isinstance(value, torch.Tensor) and value.device.type != "meta" else None
