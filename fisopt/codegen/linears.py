"""Linears in FP8: which of a lowered graph pay, and the graph that computes them so."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fisopt.codegen import fp8
from fisopt.codegen.choose import Choice
from fisopt.codegen.lowering import check, signature
from fisopt.codegen.quantised_weights import QuantisedWeights
from fisopt.codegen.stages import Stage, inserted, stages_of
from fisopt.concurrency import tracing
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule, rewrite
from fisopt.rewrite.relations.table import argument

aten = torch.ops.aten
NAME = "fp8_weights"
"""Where a lowered graph holds what quantises its weights."""
MULTIPLE = 16
"""What the features of FP8 products are multiples of."""
SMALL = 512
"""With fewer features a product gains less than quantising its rows costs; where it is simulated,
models are smaller: with less than half of the features that others have."""
FEW = 16
"""Rows of text and time are fewer than this part of the most rows that a linear has."""
UNCOUNTED = "the prediction counts FLOPs, so it leaves out the gain of FP8"


def use_fp8(module: fx.GraphModule, model: nn.Module, *, simulate: bool) -> Choice:
    """Let the large linears of a lowered graph multiply in FP8, in place.

    Activations are quantised where they are computed.  Weights are quantised once, by
    `QuantisedWeights`; stages take them in the place of the model's.

    Args:
        module: what `lower` has made.
        model: the model that holds its weights.
        simulate: compute the same numbers without FP8 units.

    Returns:
        What was changed and what was not, for the report.

    Raises:
        LoweringError: its device has no FP8, and nothing is simulated.
    """
    stages = [(stage, _linears(stage)) for stage in stages_of(module)]
    every = [node for _, nodes in stages for node in nodes]
    most = max(map(_rows, every), default=0)
    small = max(map(_features, every), default=0) // 2 if simulate else SMALL
    left: Counter[str] = Counter()
    count, swaps = 0, []
    for stage, nodes in stages:
        taken = []
        for node in nodes:
            if not simulate:
                fp8.check_device(node.meta["val"].device)
            reason = _computed(stage, node) or _refused(node, most, small, simulate)
            if reason is None:
                taken.append(node)
            else:
                left[reason] += len(stage.calls)
        count += len(taken) * len(stage.calls)
        if taken:
            with tracing():
                swaps.append(_rewritten(stage, taken, simulate))
    if swaps:
        _hand_over(module, QuantisedWeights(model), swaps)
    others = "".join(f"; {n} not: {reason}" for reason, n in left.items())
    return Choice(
        "linear",
        f"{'simulated fp8' if simulate else 'fp8'} in {count} of {count + left.total()}",
        f"e4m3, one scale per token and output channel{others}; {UNCOUNTED}",
    )


def holds_fp8(stage: fx.GraphModule) -> bool:
    """Whether a stage takes weights in FP8."""
    values = (n.meta.get("val") for n in stage.graph.nodes if n.op == "placeholder")
    return any(isinstance(v, torch.Tensor) and v.dtype == fp8.FP8 for v in values)


def _linears(stage: Stage) -> list[fx.Node]:
    return [node for node in stage.graph.nodes if node.target is aten.linear.default]


def _computed(stage: Stage, linear: fx.Node) -> str | None:
    """Why a linear's weight is not the model's own, None if it is in every call."""
    held = [i for i, node in enumerate(stage.holders) if node is linear.args[1]]
    read = (call.args[i] for i in held for call in stage.calls)
    own = all(isinstance(node, fx.Node) and node.op == "get_attr" for node in read)
    return None if held and own else "weights that are computed"


def _rows(linear: fx.Node) -> int:
    out: torch.Tensor = linear.meta["val"]
    return out.shape[:-1].numel()


def _features(linear: fx.Node) -> int:
    weight: Any = linear.args[1]
    return int(min(weight.meta["val"].shape))


def _refused(linear: fx.Node, most: int, small: int, simulate: bool) -> str | None:
    """Why a linear stays as it is, None if it does not."""
    held: Any = linear.args[1]
    weight: torch.Tensor = held.meta["val"]
    sizes = " x ".join(map(str, weight.shape))
    if _rows(linear) * FEW < most:
        return f"{_rows(linear)} rows, others have {most}"
    if any(size % MULTIPLE for size in weight.shape):
        return f"{sizes}, wanted multiples of {MULTIPLE}"
    floats = (torch.bfloat16, torch.float16, *([torch.float32] if simulate else []))
    if weight.dtype not in floats:
        return f"weights in {weight.dtype}"
    return f"{sizes}, too small to gain" if _features(linear) < small else None


@dataclass(frozen=True)
class _Swap:
    """How the arguments of a stage have changed.

    Attributes:
        stage: the stage; pairs of a weight in FP8 and its scales are behind its other arguments.
        weights: the argument that each pair is made of, among those that it took.
        gone: the arguments that it takes no more.
    """

    stage: Stage
    weights: list[int]
    gone: set[int]


def _rewritten(stage: Stage, linears: list[fx.Node], simulate: bool) -> _Swap:
    """Change linears of a stage."""
    editor, holders = GraphEditor.of(stage.module, NAME), stage.holders
    weights: list[Any] = list(dict.fromkeys(node.args[1] for node in linears))
    places = [holders.index(weight) for weight in weights]
    pairs = dict(zip(weights, _placeholders(editor, holders[-1], weights), strict=True))
    rows: dict[Any, Any] = {}
    multiply = fp8.simulated if simulate else fp8.product

    def made(editor: GraphEditor, node: fx.Node) -> Any:
        x: Any = node.args[0]
        if x not in rows:
            flat = editor.call(aten.reshape.default, x, [-1, x.meta["val"].shape[-1]])
            rows[x] = inserted(editor, fp8.quantised, flat)
        out: torch.Tensor = node.meta["val"]
        bias = argument(node, 2, "bias", None)

        def multiplied(*operands: Any) -> torch.Tensor:
            a, b, c, d, *rest = operands
            return multiply(a, b, c, d, rest[0] if rest else None, out.dtype)

        operands = (*rows[x], *pairs[node.args[1]], *([] if bias is None else [bias]))
        result = inserted(editor, multiplied, *operands)
        return editor.call(aten.reshape.default, result, list(out.shape))

    rewrite(editor, [NodeRule(NAME, set(linears).__contains__, made)], once=True)
    gone = {i for i in places if not holders[i].users}
    for i in gone:
        stage.graph.erase_node(holders[i])
    check(stage.module, signature(stage.graph), NAME)
    stage.module.recompile()
    return _Swap(stage, places, gone)


def _placeholders(
    editor: GraphEditor, last: fx.Node, weights: list[fx.Node]
) -> list[tuple[fx.Node, fx.Node]]:
    """Arguments behind the last one for each weight: its rows in FP8, and their scales."""

    def placeholder(name: str, value: torch.Tensor) -> fx.Node:
        nonlocal last
        with editor.graph.inserting_after(last):
            last = editor.graph.placeholder(name)
        last.meta.update({"val": value, "fisopt.parameter": True})
        return last

    pairs = []
    for weight in weights:
        like: torch.Tensor = weight.meta["val"]
        with editor.mode:
            rows = like.new_empty(like.shape, dtype=fp8.FP8)
            scale = like.new_empty(1, like.shape[0], dtype=torch.float32)
        name = weight.name
        pairs.append((placeholder(f"{name}_fp8", rows), placeholder(f"{name}_scale", scale)))
    return pairs


def _hand_over(module: fx.GraphModule, weights: QuantisedWeights, swaps: list[_Swap]) -> None:
    """Quantise the weights that stages take, before they are called, and hand them over."""
    calls = [(swap, call) for swap in swaps for call in swap.stage.calls]
    held = {call: [str(call.args[i].target) for i in swap.weights] for swap, call in calls}  # type: ignore[union-attr]
    paths = list(dict.fromkeys(path for each in held.values() for path in each))
    graph = module.graph
    module.add_module(NAME, weights)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        made = graph.call_module(NAME, tuple(graph.get_attr(path) for path in paths))
        pieces = [graph.call_function(operator.getitem, (made, i)) for i in range(2 * len(paths))]
    pairs = {path: pieces[2 * i : 2 * i + 2] for i, path in enumerate(paths)}
    for swap, call in calls:
        kept = [x for i, x in enumerate(call.args) if i not in swap.gone]
        call.args = (*kept, *(node for path in held[call] for node in pairs[path]))
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    module.recompile()
