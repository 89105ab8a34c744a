"""Outline regions of a graph into callees; regions of equal structure share one callee."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from fisopt.errors import CaptureError
from fisopt.rewrite.axes import axes_of

REGION = "fisopt.region"
"""Where a call says what was outlined into its callee."""


@dataclass
class Region:
    """Nodes to outline together, in graph order, with what enters and what leaves."""

    name: str
    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]


def find_regions(graph: fx.Graph, region_of: Callable[[fx.Node], str | None]) -> list[Region]:
    """Group nodes by the region that a function names, in order of first appearance."""
    members: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        name = region_of(node)
        if name is not None:
            members.setdefault(name, []).append(node)
    return [_region(name, nodes) for name, nodes in members.items()]


def _region(name: str, nodes: list[fx.Node]) -> Region:
    inside = set(nodes)
    entering = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    values = [n for n in entering if n.op != "get_attr"]
    parameters = [n for n in entering if n.op == "get_attr"]
    leaving = [node for node in nodes if any(user not in inside for user in node.users)]
    return Region(name, nodes, values + parameters, leaving)


def _callee(region: Region, owner: fx.GraphModule) -> fx.GraphModule:
    """Copy a region into a graph of its own; what enters becomes placeholders."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in region.inputs:
        name = node.name
        if node.op == "get_attr":
            block, _, _ = region.name.partition("@")  # called more than once
            name = str(node.target).removeprefix(block + ".").replace(".", "_")
            name = name if name.isidentifier() else f"_{name}"  # a layer of a Sequential
        env[node] = graph.placeholder(name)
        env[node].meta = {k: v for k, v in node.meta.items() if k != "nn_module_stack"}
        env[node].meta["fisopt.parameter"] = node.op == "get_attr" or bool(
            node.meta.get("fisopt.parameter")
        )
    for node in region.nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])
        env[node].meta = dict(node.meta)
    results = tuple(env[node] for node in region.outputs)
    graph.output(results[0] if len(results) == 1 else results)
    callee = fx.GraphModule(owner, graph, class_name="Block")
    callee.meta.update(owner.meta)
    return callee


def outputs_of(graph: fx.Graph) -> list[Any]:
    """All that a graph returns, in order, what is no node included."""
    held = graph.output_node().args[0]
    return list(held) if isinstance(held, (tuple, list)) else [held]


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Copy a graph, metadata included; return the copy and the twin of every node."""
    new = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    output = graph.output_node()
    twins[output] = new.output(new.graph_copy(graph, twins))
    for node, twin in twins.items():
        twin.meta = dict(node.meta)
    return new, twins


def structure(graph: fx.Graph) -> Hashable:
    """A key that two graphs share exactly if they are the same up to names."""
    index: dict[fx.Node, int] = {}
    rows: list[Hashable] = []
    for node in graph.nodes:
        index[node] = len(index)
        args, kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs),
            lambda a: ("%", index[a]) if isinstance(a, fx.Node) else a,
        )
        target = node.target if node.op in ("call_function", "call_module", "get_attr") else ""
        rows.append(
            (node.op, str(target), repr(args), repr(kwargs), value_key(node), axes_of(node))
        )
    return tuple(rows)


def value_key(node: fx.Node) -> tuple[Hashable, ...]:
    """Shape, type and device of a node's value, or of each of its values."""
    return key_of(node.meta.get("val"))


def key_of(value: Any) -> tuple[Hashable, ...]:
    """Shape, type and device of a value, or of each value of several."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return tuple(
        (tuple(v.shape), v.dtype, v.device) if isinstance(v, torch.Tensor) else None for v in values
    )


def outline(
    module: fx.GraphModule, regions: list[Region], prefix: str
) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """Replace each region by one call; return the new module and the call of every region.

    Callees are submodules named ``<prefix>_a``, ``<prefix>_b``, ...; parameters enter them as
    arguments, so that regions of equal structure share one.

    Raises:
        CaptureError: a region's result feeds itself through nodes outside of it.
    """
    home: dict[fx.Node, Region] = {node: r for r in regions for node in r.nodes}
    order = _quotient_order(module.graph, home)
    root = nn.Module()
    callees: dict[Hashable, str] = {}
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    calls: dict[str, fx.Node] = {}
    modules: dict[str, nn.Module] = {}
    for item in order:
        if isinstance(item, fx.Node):
            env[item] = graph.node_copy(item, lambda n: env[n])
            env[item].meta = dict(item.meta)
            continue
        callee = _callee(item, module)
        key = structure(callee.graph)
        if key not in callees:
            callees[key] = f"{prefix}_{_letters(len(callees))}"
            modules[callees[key]] = callee
        call = graph.create_node(
            "call_module", callees[key], tuple(env[n] for n in item.inputs), name=_safe(item.name)
        )
        call.meta[REGION] = item.name
        calls[item.name] = call
        if len(item.outputs) == 1:
            env[item.outputs[0]] = call
            call.meta.update(
                {k: v for k, v in item.outputs[0].meta.items() if k in ("val", "fisopt.axes")}
            )
            continue
        call.meta["val"] = tuple(n.meta["val"] for n in item.outputs)
        for i, node in enumerate(item.outputs):
            env[node] = graph.call_function(operator.getitem, (call, i))
            env[node].meta = {k: v for k, v in node.meta.items() if k in ("val", "fisopt.axes")}
    attach(root, module, graph, modules)
    result = fx.GraphModule(root, graph, class_name="Program")
    result.meta.update(module.meta)
    return result, calls


def attach(
    root: nn.Module, source: nn.Module, graph: fx.Graph, modules: Mapping[str, nn.Module]
) -> None:
    """Give a new root the callees and the tensors that a graph refers to, shared not copied."""
    for name, callee in modules.items():
        root.add_module(name, callee)
    for node in graph.nodes:
        if node.op == "get_attr":
            share(root, source, str(node.target))


def share(root: nn.Module, source: nn.Module, path: str) -> None:
    """Make ``root.path`` the very tensor that ``source.path`` is."""
    hold(root, path, operator.attrgetter(path)(source))


def hold(root: nn.Module, path: str, value: Any) -> None:
    """Make ``root.path`` a value."""
    *parents, leaf = path.split(".")
    holder = root
    for part in parents:
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    for held in (holder._parameters, holder._buffers, vars(holder)):
        held.pop(leaf, None)  # a parameter may have become a buffer
    if isinstance(value, nn.Parameter):
        holder.register_parameter(leaf, value)
    elif isinstance(value, torch.Tensor):
        holder.register_buffer(leaf, value, persistent=False)
    else:
        setattr(holder, leaf, value)


def _letters(index: int) -> str:
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(97 + rest) + text
    return text


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _quotient_order(graph: fx.Graph, home: Mapping[fx.Node, Region]) -> list[fx.Node | Region]:
    """Nodes and regions in an order in which every input comes first."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    key = {node: id(home[node]) if node in home else node for node in graph.nodes}
    item: dict[Any, fx.Node | Region] = {key[n]: home.get(n, n) for n in graph.nodes}
    first: dict[Any, int] = {}
    quotient = nx.DiGraph()
    for node in graph.nodes:
        first.setdefault(key[node], position[node])
        quotient.add_node(key[node])
        for source in node.all_input_nodes:
            if key[source] != key[node]:
                quotient.add_edge(key[source], key[node])
    try:
        ordered = list(nx.lexicographical_topological_sort(quotient, key=first.__getitem__))
    except nx.NetworkXUnfeasible as error:
        raise CaptureError(
            "a block's result returns to it through code outside it; name the enclosing module "
            "as the block"
        ) from error
    return [item[k] for k in ordered]
