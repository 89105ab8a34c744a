"""A captured Program as plain values, and back on a live model, whose weights it has by path."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fisopt.reading import MalformedError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.outline import attach, hold, share
from fisopt.rewrite.program import Program
from fisopt.rewrite.tools.tool import traced
from fisopt.rewrite.tracing.inner import faked
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.origin import Source
from fisopt.rewrite.tracing.trace import MODE, PUTS, STRUCTURE
from fisopt.rewrite.tracing.tracer import PARTS
from fisopt.rewrite.tracing.training import SWITCHES
from fisopt.rewrite.tracing.weights import place_of
from fisopt.rewrite.tracing.writes import Write
from fisopt.stored.constants import constant, plain_constants
from fisopt.stored.graph_data import NotPlainError, StoredGraph, plain_graph
from fisopt.stored.graph_file import plain
from fisopt.stored.tree import structure_of, structure_text

_META = {MODE, SWITCHES, STRUCTURE, PUTS, PARTS}


def plain_program(program: Program) -> dict[str, Any]:
    """A Program that was captured and not edited, as plain values.

    Raises:
        NotPlainError, ExportError: it holds what plain values do not say.
    """
    module, text = program.graph_module, structure_text(program.out_structure)
    if structure_of(text) != program.out_structure:
        raise NotPlainError("the model returns a nesting that plain values do not say")
    if program.puts:
        raise NotPlainError("the model sets entries of the dicts or lists that it is given")
    callees = dict(module.named_children())
    graphs = {n: m.graph for n, m in callees.items() if isinstance(m, fx.GraphModule)}
    for each in (module, *(callees[name] for name in graphs)):
        if others := getattr(each, "meta", {}).keys() - _META:
            raise NotPlainError(f"a graph is marked with {sorted(others)[0]}")
    model = program.source.tracer.model
    with traced(model):
        paths = {str(n.target) for n in program.graph.find_nodes(op="get_attr")}
        others = {p: operator.attrgetter(p)(module) for p in paths if not _is_weight(model, p)}
    return {
        "layout": [program.layout.frames, program.layout.height, program.layout.width],
        "structure": text,
        "writes": [[w.name, list(w.shape), w.leaf, w.part] for w in program.writes],
        "switches": bool(module.meta.get(SWITCHES)),
        "graph": plain_graph(program.graph),
        "callees": {name: plain_graph(graph) for name, graph in graphs.items()},
        "constants": plain_constants(others, model),
    }


def program_of(said: Any, source: Source, inputs: Inputs) -> Program:
    """Make a Program from what `plain_program` returned, on the weights of a source's model.

    Raises:
        FisoptError, LookupError, TypeError, ValueError, AttributeError, RuntimeError: the values
            are malformed, or are not of this model.
    """
    recorder, model = source.tracer.recorder, source.tracer.model
    structure = structure_of(said["structure"])
    meta = {
        MODE: recorder,
        SWITCHES: plain(said["switches"], bool),
        STRUCTURE: structure,
        PUTS: (),
        PARTS: (),
    }
    root, callees = nn.Module(), {}
    for name, graph in said["callees"].items():
        made = StoredGraph(graph, (), recorder).read()
        callees[plain(name, str)] = fx.GraphModule(root, made, class_name="Block")
    graph = StoredGraph(said["graph"], callees, recorder).read()
    with traced(model):
        for path in {str(n.target) for n in graph.find_nodes(op="get_attr")}:
            if path in said["constants"]:
                hold(root, path, constant(said["constants"][path], model))
            elif _is_weight(model, path):
                share(root, model, path)
            else:
                raise MalformedError(f"the model has no weight {path}")
        for node in graph.find_nodes(op="get_attr"):
            node.meta["val"] = faked(recorder, operator.attrgetter(str(node.target))(root))
    module = _module(root, graph, callees)
    for each in (module, *callees.values()):
        each.meta.update(meta)
    writes = tuple(map(_write, said["writes"]))
    layout = TokenLayout(*(plain(x, int) for x in said["layout"]))
    return Program(module, layout, inputs, source, structure, writes)


def _write(said: Any) -> Write:
    name, shape, leaf, part = said
    numbers = None if part is None else tuple(plain(x, int) for x in part)
    if numbers is not None and len(numbers) != 3:
        raise MalformedError("a write is into a part of another form")
    sizes = tuple(plain(x, int) for x in shape)
    place = plain(leaf, int, type(None))
    return Write(plain(name, str), sizes, place, numbers)


def _module(held: nn.Module, graph: fx.Graph, callees: dict[str, fx.GraphModule]) -> fx.GraphModule:
    root = nn.Module()
    attach(root, held, graph, callees)
    return fx.GraphModule(root, graph, class_name="Program")


def _is_weight(model: nn.Module, path: str) -> bool:
    """Whether a model holds a parameter or a buffer under a path, or a part of one."""
    if place_of(model, path) is not None:
        return True
    try:
        value = operator.attrgetter(path)(model)
    except AttributeError:
        return False
    return isinstance(value, torch.Tensor) and path in dict(model.named_buffers())
