"""Inlining: put callees in the place of calls, and references in the place of operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.errors import LoweringError
from fisopt.rewrite.ops.operator import Operator, declared
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.template import MODE


def inline_calls(module: fx.GraphModule, root: fx.GraphModule) -> None:
    """Replace every call of a block by the block's graph; callees are those of ``root``."""
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        callee = root.get_submodule(str(node.target))
        if not isinstance(callee, fx.GraphModule):
            raise LoweringError(f"{node.format_node()}: {node.target} is not a graph")
        _inline(module.graph, node, callee.graph, node.args)


def inline_references(module: fx.GraphModule, *, keep_opaque: bool = False) -> None:
    """Replace every declared operator by its traced reference, those of torch's own excepted.

    An operator whose plan is a constant of the graph is replaced by what the plan says instead:
    its reference is for checking.

    Args:
        module: the graph, edited in place.
        keep_opaque: leave opaque operators calls.

    Raises:
        LoweringError: a reference cannot be traced.
    """
    mode = module.meta[MODE]
    traced: dict[Hashable, fx.Graph] = {}
    for node in list(module.graph.nodes):
        made = declared(node.target)
        if made is None or made.definition is None or (keep_opaque and made.opaque):
            continue
        function, constants = _implementation(made, node, module)
        places = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node)]
        places = [i for i in places if i not in constants]
        operands = [node.args[i] for i in places]
        rest = tuple(constants.get(i, a) for i, a in enumerate(node.args) if i not in places)
        key = (made, tuple(places), repr(rest), tuple(value_key(n) for n in operands))
        if key not in traced:

            def run(*values: torch.Tensor) -> Any:
                args = [constants.get(i, a) for i, a in enumerate(node.args)]  # noqa: B023
                for i, value in zip(places, values, strict=True):  # noqa: B023 - traced at once
                    args[i] = value
                return function(*args)  # noqa: B023

            with mode, torch.no_grad():  # equal values share one fake: each operand needs its own
                fakes = [torch.empty_like(n.meta["val"]) for n in operands]
                traced[key] = _trace(run, fakes, made)
        _inline(module.graph, node, traced[key], operands)


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


def _inline(graph: fx.Graph, node: fx.Node, body: fx.Graph, args: Any) -> None:
    """Put a graph in the place of one call."""
    env: dict[fx.Node, fx.Node] = {}
    holders = [n for n in body.nodes if n.op == "placeholder"]
    env.update(zip(holders, args, strict=True))
    with graph.inserting_before(node):
        result = graph.graph_copy(body, env)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            piece = result[user.args[1]]  # type: ignore[index]
            if not isinstance(piece, fx.Node):
                raise LoweringError(f"{node.format_node()}: result {user.args[1]} is no tensor")
            user.replace_all_uses_with(piece)
            graph.erase_node(user)
    graph.erase_node(node)
