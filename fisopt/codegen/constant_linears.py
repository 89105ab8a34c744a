"""Linears in FP8 in a flat graph: rounded weights become constants of it, half as large."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fisopt.codegen.quantised_weights import QuantisedWeights
from fisopt.codegen.rounded_linears import NAME, Limits, linears_of
from fisopt.concurrency import tracing
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import rewrite

ROUNDED = "fisopt.rounded"
"""Where a flat graph says, as a `Choice`, which of its linears are in FP8."""


def round_linears(module: fx.GraphModule, model: nn.Module, *, simulate: bool) -> fx.GraphModule:
    """Let the large linears of a flat graph multiply in FP8.

    Args:
        module: what `flatten` has made; its graph changes.
        model: the model that holds its weights.
        simulate: compute the same numbers without FP8 units.

    Returns:
        The graph with the weights in FP8, without those that they stand for; ``meta[ROUNDED]`` says
        what was changed and what was not.

    Raises:
        LoweringError: its device has no FP8, and nothing is simulated.
    """
    linears = linears_of(module.graph)
    limits = Limits.of(linears, simulate=simulate)
    taken, left = limits.divided(linears, _computed)
    if taken:
        with tracing():
            module = _rewritten(module, model, taken, limits)
    module.meta[ROUNDED] = limits.choice(len(taken), left)
    return module


def _computed(linear: fx.Node) -> bool:
    """Whether a linear's weight is not the model's own."""
    weight: Any = linear.args[1]
    return bool(weight.op != "get_attr")


def _rewritten(
    module: fx.GraphModule, model: nn.Module, linears: list[fx.Node], limits: Limits
) -> fx.GraphModule:
    editor = GraphEditor.of(module, NAME)
    readers: list[Any] = list(dict.fromkeys(node.args[1] for node in linears))
    paths = list(dict.fromkeys(str(reader.target) for reader in readers))
    made = QuantisedWeights(model)(*(operator.attrgetter(path)(module) for path in paths))
    first = next(node for node in module.graph.nodes if node.op != "placeholder")
    with editor.before(first):
        constants = {
            path: (
                _constant(editor, module, f"{path}_fp8", made[2 * i]),
                _constant(editor, module, f"{path}_scale", made[2 * i + 1]),
            )
            for i, path in enumerate(paths)
        }
    pairs = {reader: constants[str(reader.target)] for reader in readers}
    rewrite(editor, [limits.rule(linears, pairs)], once=True)
    for reader in readers:
        if not reader._erased and not reader.users:
            module.graph.erase_node(reader)
    result = fx.GraphModule(module, module.graph, class_name="Flat")  # holds what it still reads
    result.meta.update(module.meta)
    return result


def _constant(
    editor: GraphEditor, module: fx.GraphModule, path: str, value: torch.Tensor
) -> fx.Node:
    """A buffer of the module, and the node that reads it."""
    name = path.replace(".", "_")
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, value)
    node = editor.graph.get_attr(name)
    with editor.mode:
        node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return node
