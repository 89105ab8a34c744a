"""The text form of a Program: stable, short, used by snapshots, reports and `fisopt inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fisopt.checked import checked
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.program import Program, check_program


@checked
def format_graph(program: Program, *, blocks: bool = True, parameters: bool = False) -> str:
    """Print a Program as text: the graph of block calls, then each distinct block.

    Each node has one line: ``%name: [shape] = operator(arguments)``. A dimension that carries
    frames shows its structure: ``f9*64`` is nine frames of 64 tokens.

    Args:
        program: the Program to print.
        blocks: also print the graph of each distinct block.
        parameters: also print the parameters among a block's arguments.
    """
    check_program(program)
    lines = [f"program {program.layout} tokens", *_lines(program.graph, "  ", parameters)]
    if blocks:
        seen: dict[str, fx.GraphModule] = {}
        for node in program.graph.nodes:
            if node.op == "call_module":
                seen.setdefault(str(node.target), program.callee(node))
        for name, callee in seen.items():
            lines += ["", f"{name}", *_lines(callee.graph, "  ", parameters)]
    return "\n".join(lines)


def format_block(callee: fx.GraphModule) -> str:
    """Print one block's graph."""
    return "\n".join(_lines(callee.graph, "", False))


def _lines(graph: fx.Graph, indent: str, parameters: bool) -> Iterator[str]:
    hidden = {n for n in graph.nodes if n.op == "get_attr" or n.meta.get("fisopt.parameter")}
    names = _names(graph)
    inputs = [n for n in graph.nodes if n.op == "placeholder" and (parameters or n not in hidden)]
    for node in inputs:
        yield f"{indent}{names[node]}: {_type(node)}"
    for node in graph.nodes:
        if node.op in ("call_function", "call_module"):
            shown = [
                _argument(a, names)
                for a in node.args
                if parameters or node.op == "call_function" or a not in hidden
            ]
            omitted = sum(1 for a in node.args if a in hidden) if node.op == "call_module" else 0
            if omitted and not parameters:
                shown.append(f"+{omitted} parameters")
            shown += [f"{k}={_argument(v, names)}" for k, v in node.kwargs.items()]
            yield f"{indent}{names[node]}: {_type(node)} = {_target(node)}({', '.join(shown)})"
    yield f"{indent}return {', '.join(names[n] for n in results(graph))}"


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Inputs keep their names, results are numbered, constants show their path."""
    names: dict[fx.Node, str] = {}
    count = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = f"%{node.name}"
        elif node.op == "get_attr":
            names[node] = f"@{node.target}"
        elif node.op != "output":
            names[node] = f"%{count}"
            count += 1
    return names


def _target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        overload = "" if target._overloadname == "default" else f".{target._overloadname}"
        return f"{target.namespace}::{target._opname}{overload}"
    return str(getattr(target, "__name__", target))


def _argument(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_argument(v, names) for v in value) + "]"
    return str(value)


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_sizes(v, ()) for v in value) + ")"
    return _sizes(value, axes_of(node))


def _sizes(value: Any, axes: tuple[Any, ...]) -> str:
    if not isinstance(value, torch.Tensor):
        return "?"
    dims = [
        str(axes[d]) if d < len(axes) and axes[d] is not None else str(size)
        for d, size in enumerate(value.shape)
    ]
    return "[" + ", ".join(dims) + "]"
