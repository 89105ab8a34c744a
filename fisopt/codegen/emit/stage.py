"""Putting kernels into a stage: a region's operators become one call."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import astuple

import networkx as nx
import torch
from torch import fx

from fisopt.codegen.emit.kernel import Config, Kernel
from fisopt.codegen.emit.launch import register
from fisopt.codegen.emit.region import Region
from fisopt.rewrite.analysis.structure import dependences
from fisopt.rewrite.outline import copied


def with_kernels(
    stage: fx.GraphModule, chosen: Sequence[tuple[Region, Kernel, Config]]
) -> fx.GraphModule:
    """Return a stage that calls kernels instead of some of its regions.

    Args:
        stage: a lowered stage; left as it is.
        chosen: regions of this stage, their kernels, and how these are cut.
    """
    graph, twins = copied(stage.graph)
    with graph.inserting_before(graph.output_node()):
        for region, kernel, config in chosen:
            _call(graph, twins, region, kernel, config)
    result = fx.GraphModule(stage, _ordered(graph), class_name="Stage")
    result.meta.update(stage.meta)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _call(
    graph: fx.Graph, twins: dict[fx.Node, fx.Node], region: Region, kernel: Kernel, config: Config
) -> None:
    """Let the users of a region's results read what its kernel gives."""
    register(kernel)
    operands = [twins[node] for node in region.operands]
    arguments = (kernel.name, list(astuple(config)), operands)
    call = graph.call_function(torch.ops.fisopt.emitted.default, arguments)
    call.meta["val"] = [
        region.results[kernel.gives.index(i)].meta["val"].new_empty(sizes)
        for i, (sizes, _) in enumerate(kernel.results)
    ]
    written: dict[int, fx.Node] = {}
    for node, i in zip(region.results, kernel.gives, strict=True):
        if i not in written:
            written[i] = graph.call_function(operator.getitem, (call, i))
            written[i].meta = {**twins[node].meta, "val": call.meta["val"][i]}
        made = written[i]
        twins[node].replace_all_uses_with(made)
        twins[node] = made


def _ordered(graph: fx.Graph) -> fx.Graph:
    """The same graph with every operand before its users."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    result = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    ordered = nx.lexicographical_topological_sort(dependences(graph), key=position.__getitem__)
    output = graph.output_node()
    for node in [*(n for n in ordered if n is not output), output]:
        env[node] = result.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
    return result
