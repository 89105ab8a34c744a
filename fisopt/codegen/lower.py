"""Lowering: fuse each block with its gathers and fills, and replace contracts by references."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.codegen.fuse_reduction import fuse_reduction
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.registry import CONTRACTS, OPAQUE
from fisopt.rewrite.outline import find_regions, outline
from fisopt.rewrite.program import IS_BLOCK, Program
from fisopt.rewrite.template import MODE

STAGE = "fisopt.stage"


def lower(program: Program) -> fx.GraphModule:
    """Return a graph of few calls, each of plain ATen operators, equal to the Program.

    Every video block becomes one call together with the gathers that only it reads and the
    fills that only it feeds; the code before, between and after the blocks becomes one call
    each.  Calls of equal structure share one callee.
    """
    program = program.copy()
    graph = program.graph
    stage = _stages(graph)
    regions = find_regions(graph, stage.get)
    module, _ = outline(program.graph_module, regions, "stage")
    for _, callee in module.named_children():
        if isinstance(callee, fx.GraphModule):
            _inline_calls(callee, program.graph_module)
            fuse_reduction(callee.graph)
            _inline_contracts(callee)
            callee.graph.eliminate_dead_code()
            callee.recompile()
    module.recompile()
    return module


def _stages(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name the stage of every node: a block's, the head's, or that after the k-th block."""
    order = {n: i for i, n in enumerate(n for n in graph.nodes if IS_BLOCK in n.meta)}
    owner: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node in order:
            owner[node] = order[node]
        elif node.target is operator.getitem and node.args[0] in order:
            owner[node] = order[node.args[0]]
        elif node.target is torch.ops.fisopt.fill_frames.default and node.args[1] in owner:
            owner[node] = owner[node.args[1]]
    for node in reversed(graph.nodes):
        if node.target is torch.ops.fisopt.gather_frames.default and node.users:
            users = {owner.get(user) for user in node.users}
            if len(users) == 1 and (only := users.pop()) is not None:
                owner[node] = only
    stage: dict[fx.Node, str] = {}
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_module"):
            continue
        if node in owner:
            level[node] = owner[node]
            stage[node] = f"block_{owner[node]}"
        else:
            level[node] = max((level.get(n, -1) for n in node.all_input_nodes), default=-1)
            stage[node] = f"after_{level[node]}" if level[node] >= 0 else "head"
    return stage


def _inline_calls(module: fx.GraphModule, root: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        callee = root.get_submodule(str(node.target))
        if not isinstance(callee, fx.GraphModule):
            raise LoweringError(f"{node.format_node()}: {node.target} is not a graph")
        _inline(module.graph, node, callee.graph, node.args)


def _inline_contracts(module: fx.GraphModule) -> None:
    """Replace every ``fisopt::`` operator, save the opaque, by its traced reference."""
    mode = module.meta[MODE]
    for node in list(module.graph.nodes):
        target: Any = node.target
        if node.op != "call_function" or getattr(target, "namespace", "") != "fisopt":
            continue
        if target in OPAQUE:
            continue
        reference = CONTRACTS.get(target)
        if reference is None:
            raise LoweringError(f"{target} has no contract in rewrite/ops; nothing implements it")
        places = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node)]
        operands = [a for a in node.args if isinstance(a, fx.Node)]

        def run(*values: torch.Tensor) -> Any:
            args = list(node.args)  # noqa: B023 - traced at once
            for i, value in zip(places, values, strict=True):  # noqa: B023
                args[i] = value
            return reference(*args)  # noqa: B023

        with mode, torch.no_grad():
            traced = make_fx(run)(*(n.meta["val"] for n in operands))
        _inline(module.graph, node, traced.graph, operands)


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
