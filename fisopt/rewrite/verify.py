"""The verifier: every invariant of a Program in one function."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.checked import checked
from fisopt.errors import VerifyError
from fisopt.rewrite.analysis.structure import result_nodes, results
from fisopt.rewrite.axes import axes_of, axes_text, same_axes
from fisopt.rewrite.edit.editor import GROUP, PART
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.outline import outputs_of, value_key
from fisopt.rewrite.program import Program, check_program
from fisopt.rewrite.relations import virtual_shape
from fisopt.rewrite.tracing.writes import mutates


@checked
def verify(program: Program) -> None:
    """Check a Program.

    Raises:
        VerifyError: the graph is malformed; a value or an axis is missing or wrong; a call passes a
            block arguments of other sizes or frames, expects other results, or mixes two parts of
            the video; an operator mutates its operands or has no contract.
    """
    check_program(program)
    module = program.graph_module
    _check_graph(module, "program")
    names = {str(n.target) for n in program.graph.nodes if n.op == "call_module"}
    for name in sorted(names):
        callee = module.get_submodule(name)
        if not isinstance(callee, fx.GraphModule):
            raise VerifyError(f"program: {name} is not a graph module")
        _check_graph(callee, name)
    for node in program.graph.nodes:
        if node.op == "call_module":
            _check_call(node, program.callee(node))
    held = outputs_of(program.graph)
    count, own = len(held), program.own_results
    extra = len(program.stores) + len(program.gauges)
    if count != own + extra:
        raise VerifyError(
            f"program: returns {count} values, the model returns {own}"
            + (f", state and measurements are {extra}" if extra else "")
        )
    written = held[own - len(program.left) : own]
    for (name, sizes), node in zip(program.left, written, strict=True):
        if (got := tuple(node.meta["val"].shape)) != sizes:
            raise VerifyError(
                f"program: {node} of shape {got} is written into {name!r}, the model writes "
                f"{sizes}; what a model leaves for later calls must stay whole"
            )
    takes = sum(n.op == "placeholder" for n in program.graph.nodes)
    wanted = sum(1 for _ in program.inputs.tensors()) + len(program.loads)
    if takes != wanted:
        raise VerifyError(f"program: takes {takes} tensors, inputs and loaded state are {wanted}")


def _check_graph(module: fx.GraphModule, where: str) -> None:
    try:
        module.graph.lint()
    except Exception as error:
        raise VerifyError(f"{where}: {error}") from error
    *_, last = module.graph.nodes
    if last.op != "output":
        raise VerifyError(f"{where}: {last} comes after the output; edit through Rewriter")
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        if "val" not in node.meta:
            raise VerifyError(f"{where}: {node.format_node()} has no value; edit through Rewriter")
        _check_axes(node, where)
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            _check_operator(node, where)


def _check_axes(node: fx.Node, where: str) -> None:
    axes = axes_of(node)
    sizes = virtual_shape(node)
    if not axes:
        return
    if len(axes) != len(sizes):
        raise VerifyError(f"{where}: {node} has {len(axes)} axes for a value of shape {sizes}")
    for d, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        if axis is not None and axis.size != size:
            raise VerifyError(
                f"{where}: dimension {d} of {node} has {size} entries, its axis says {axis} "
                f"= {axis.size}"
            )


def _check_operator(node: fx.Node, where: str) -> None:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    if mutates(node):
        raise VerifyError(f"{where}: {node.format_node()} mutates its input")
    if target.namespace == "fisopt" and declared(target) is None:
        raise VerifyError(f"{where}: {target} is not declared; see fisopt.operator")


def _check_parts(call: fx.Node, holders: list[fx.Node]) -> None:
    """Insist that what a block is passed on a part of the video is on one part."""
    held: dict[object, tuple[object, object]] = {}
    for holder, arg in zip(holders, call.args, strict=True):
        parts = arg.meta.get(PART, {}).values() if isinstance(arg, fx.Node) else ()
        for part in parts:
            first, other = held.setdefault(holder.meta.get(GROUP), (arg, part))
            if other != part:
                raise VerifyError(
                    f"{call.target}: {call} passes {first} on {other} and {arg} on {part}; take "
                    "both on one of them"
                )


def _check_call(call: fx.Node, callee: fx.GraphModule) -> None:
    holders = [n for n in callee.graph.nodes if n.op == "placeholder"]
    if len(holders) != len(call.args):
        raise VerifyError(
            f"{call.target}: takes {len(holders)} arguments, {call} passes {len(call.args)}"
        )
    for holder, arg in zip(holders, call.args, strict=True):
        if not isinstance(arg, fx.Node):
            continue
        if value_key(holder) != value_key(arg):
            raise VerifyError(
                f"{call.target}: argument {holder.name} takes {value_key(holder)}, "
                f"{call} passes {arg} {value_key(arg)}"
            )
        if not same_axes(axes_of(holder), axes_of(arg)):
            raise VerifyError(
                f"{call.target}: argument {holder.name} takes frames {axes_text(axes_of(holder))}, "
                f"{call} passes {arg} with frames {axes_text(axes_of(arg))}"
            )
    _check_parts(call, holders)
    returned = results(callee.graph)
    got = call.meta["val"] if isinstance(call.meta["val"], tuple) else (call.meta["val"],)
    want = [n.meta["val"] for n in returned]
    if [tuple(v.shape) for v in got] != [tuple(v.shape) for v in want]:
        raise VerifyError(
            f"{call}: records results {[tuple(v.shape) for v in got]}, {call.target} returns "
            f"{[tuple(v.shape) for v in want]}"
        )
    for result, node in zip(returned, result_nodes(call, len(returned)), strict=True):
        if node is not None and not same_axes(axes_of(result), axes_of(node)):
            raise VerifyError(
                f"{call}: records frames {axes_text(axes_of(node))} of {node}, {call.target} "
                f"returns {result.name} with frames {axes_text(axes_of(result))}"
            )
