"""Operands that one operator uses in two ways, such as attention of a value to itself."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations import relation
from fisopt.rewrite.tracing.block_paths import BLOCK

aten = torch.ops.aten


def separate_roles(graph: fx.Graph) -> None:
    """Give an operand that one operator both follows and combines a node for each role.

    Attention of a value to itself needs some frames of it as queries, all of it as keys.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or len(node.args) == len(set(map(id, node.args))):
            continue
        found = relation(node)
        followed = {(link.operand, link.dim) for link in found.links}
        both = {operand for operand, d in found.mixed if (operand, d) in followed}
        seen: set[fx.Node] = set()
        args = list(node.args)
        for i, arg in enumerate(args):
            if isinstance(arg, fx.Node) and arg in seen & both:
                with graph.inserting_before(node):
                    args[i] = twin = graph.create_node(
                        "call_function", aten.alias.default, (arg,), name=f"{node.name}_arg{i}"
                    )
                twin.meta = {k: v for k, v in node.meta.items() if k == BLOCK}
                twin.meta["val"] = arg.meta["val"]
            elif isinstance(arg, fx.Node):
                seen.add(arg)
        node.args = tuple(args)
