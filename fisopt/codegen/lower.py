"""Lowering: fuse each block with its gathers and fills, and replace operators by references."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from fisopt.codegen.fuse_reduction import fuse_reduction
from fisopt.codegen.inline import inline_calls, inline_references
from fisopt.codegen.lowering import LoweringPass, check, run_passes, signature
from fisopt.rewrite.edit.local import NodeRule
from fisopt.rewrite.ops.operator import restored, selected
from fisopt.rewrite.outline import find_regions, outline
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.block_paths import BLOCK

LOWERING = (
    LoweringPass("inline calls", lambda stage, root: [inline_calls(root)]),
    LoweringPass("fuse reduction", lambda stage, root: [fuse_reduction()]),
)
"""What is done to every stage, in order; then rules of a device, then `WRITTEN_OUT`."""
WRITTEN_OUT = LoweringPass(
    "inline references", lambda stage, root: [inline_references(stage, keep_opaque=True)]
)


def lower(program: Program, rules: Sequence[NodeRule] = ()) -> fx.GraphModule:
    """Return a graph of few calls, each of plain ATen operators, equal to the Program.

    Every video block becomes one call together with the gathers that only it reads and the
    fills that only it feeds; the code before, between and after the blocks becomes one call
    each.  Calls of equal structure share one callee.

    Args:
        program: what to lower.
        rules: of the device that it runs on, applied before references are written out.

    Raises:
        LoweringError: an operator has no implementation, or the result is not of the Program's
            specification.
    """
    passes = [LoweringPass(rule.name, lambda *_, rule=rule: [rule]) for rule in rules]
    program = program.copy()
    graph = program.graph
    stage = _stages(graph)
    regions = find_regions(graph, stage.get)
    module, _ = outline(program.graph_module, regions, "stage")
    for _, callee in module.named_children():
        if isinstance(callee, fx.GraphModule):
            run_passes((*LOWERING, *passes, WRITTEN_OUT), callee, program.graph_module)
            callee.recompile()
    module.recompile()
    check(module, signature(program.graph), "stages")
    return module


def _stages(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name the stage of every node: a block's, the head's, or that after the k-th block."""
    order = {n: i for i, n in enumerate(n for n in graph.nodes if BLOCK in n.meta)}
    owner: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node in order:
            owner[node] = order[node]
        elif node.target is operator.getitem and node.args[0] in order:
            owner[node] = order[node.args[0]]
        elif (source := restored(node)) in owner:
            owner[node] = owner[source]
    for node in reversed(graph.nodes):
        if selected(node) is not None and node.users:
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
