"""Linears in FP8: which of a lowered graph pay, and the graph that computes them so."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.codegen import fp8
from fisopt.codegen.choose import Choice
from fisopt.codegen.lowering import check, signature
from fisopt.codegen.quantised_weights import QuantisedWeights
from fisopt.concurrency import tracing
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule, rewrite

aten = torch.ops.aten
NAME = "fp8_weights"
"""Where a lowered graph holds what quantises its weights."""
MULTIPLE = 16
"""What the features of FP8 products are multiples of."""
SMALL = 512
"""With fewer features a product gains less than quantising its rows costs."""
FEW = 16
"""Rows of text and time are fewer than this part of the most rows that a linear has."""
UNCOUNTED = "the prediction counts FLOPs, which stay: what FP8 gains is not in it"


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
    stages = _stages(module)
    most = max((_rows(node) for stage in stages for node in stage.linears), default=0)
    left: Counter[str] = Counter()
    count = 0
    for stage in stages:
        for node in stage.linears:
            if not simulate:
                fp8.check_device(node.meta["val"].device)
            reason = stage.computed(node) or _refused(node, most, simulate)
            if reason is None:
                stage.taken.append(node)
                count += len(stage.calls)
            else:
                left[reason] += len(stage.calls)
    changed = [stage for stage in stages if stage.taken]
    with tracing():
        for stage in changed:
            stage.rewrite(simulate)
    _hand_over(module, QuantisedWeights(model), changed)
    others = "".join(f"; {n} not: {reason}" for reason, n in left.items())
    return Choice(
        "linear",
        f"{'simulated fp8' if simulate else 'fp8'} in {count} of {count + left.total()}",
        f"e4m3, a scale a token and an output channel{others}; {UNCOUNTED}",
    )


def holds_fp8(stage: fx.GraphModule) -> bool:
    """Whether a stage takes weights in FP8."""
    values = (n.meta.get("val") for n in stage.graph.nodes if n.op == "placeholder")
    return any(isinstance(v, torch.Tensor) and v.dtype == fp8.FP8 for v in values)


@dataclass
class _Stage:
    """A stage, its calls, its linears, and those of them that change.

    Attributes:
        graph: the stage.
        calls: its calls.
        linears: its linears.
        taken: those that change.
        weights: the arguments that the pairs are made of that it takes behind the others.
        gone: the arguments that it takes no more.
    """

    graph: fx.GraphModule
    calls: list[fx.Node]
    linears: list[fx.Node]
    taken: list[fx.Node]
    weights: list[int]
    gone: set[int]

    @property
    def holders(self) -> list[fx.Node]:
        """What it takes."""
        return [n for n in self.graph.graph.nodes if n.op == "placeholder"]

    def computed(self, linear: fx.Node) -> str | None:
        """Why a linear's weight is not the model's own, None if it is in every call."""
        held = [i for i, node in enumerate(self.holders) if node is linear.args[1]]
        read = (call.args[i] for i in held for call in self.calls)
        own = all(isinstance(node, fx.Node) and node.op == "get_attr" for node in read)
        return None if held and own else "weights that are computed"

    def rewrite(self, simulate: bool) -> None:
        """Change the linears; weights in FP8 come behind the other arguments."""
        editor, holders = GraphEditor.of(self.graph, NAME), self.holders
        weights: list[Any] = list(dict.fromkeys(node.args[1] for node in self.taken))
        self.weights = [holders.index(weight) for weight in weights]
        pairs = dict(zip(weights, _placeholders(editor, holders[-1], weights), strict=True))
        rows: dict[Any, Any] = {}
        multiply = fp8.simulated if simulate else fp8.product

        def made(editor: GraphEditor, node: fx.Node) -> Any:
            operands: Any = (*node.args, None)
            x, weight, bias = operands[:3]
            if x not in rows:
                flat = editor.call(aten.reshape.default, x, [-1, x.meta["val"].shape[-1]])
                rows[x] = _inserted(editor, fp8.quantised, flat)
            out: torch.Tensor = node.meta["val"]

            def multiplied(a: Any, b: Any, c: Any, d: Any, bias: Any = None) -> torch.Tensor:
                return multiply(a, b, c, d, bias, out.dtype)

            given = (*rows[x], *pairs[weight], *([] if bias is None else [bias]))
            result = _inserted(editor, multiplied, *given)
            return editor.call(aten.reshape.default, result, list(out.shape))

        taken = set(self.taken)
        rewrite(editor, [NodeRule("linear in fp8", lambda node: node in taken, made)], once=True)
        self.gone = {i for i, weight in zip(self.weights, weights, strict=True) if not weight.users}
        for i in self.gone:
            self.graph.graph.erase_node(holders[i])
        check(self.graph, signature(self.graph.graph), NAME)
        self.graph.recompile()


def _stages(module: fx.GraphModule) -> list[_Stage]:
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    stages = []
    for name, mine in calls.items():
        graph: Any = module.get_submodule(name)
        linears = [n for n in graph.graph.nodes if n.target is aten.linear.default]
        stages.append(_Stage(graph, mine, linears, [], [], set()))
    return stages


def _rows(linear: fx.Node) -> int:
    out: torch.Tensor = linear.meta["val"]
    return out.shape[:-1].numel()


def _refused(linear: fx.Node, most: int, simulate: bool) -> str | None:
    """Why a linear stays as it is, None if it does not."""
    held: Any = linear.args[1]
    weight: torch.Tensor = held.meta["val"]
    sizes = " x ".join(map(str, weight.shape))
    if _rows(linear) * FEW < most:
        return f"{_rows(linear)} rows, others have {most}"
    if any(size % MULTIPLE for size in weight.shape):
        return f"{sizes}, wanted multiples of {MULTIPLE}"
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"weights in {weight.dtype}"
    if simulate:
        return None
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return f"weights in {weight.dtype}"
    return f"{sizes}, too small to gain" if min(weight.shape) < SMALL else None


def _placeholders(
    editor: GraphEditor, last: fx.Node, weights: list[fx.Node]
) -> list[tuple[fx.Node, fx.Node]]:
    """Arguments behind the last one for each weight: its rows in FP8, and their scales."""
    pairs = []
    for weight in weights:
        like: torch.Tensor = weight.meta["val"]
        rows, columns = like.shape
        with editor.mode:
            values = (
                like.new_empty(rows, columns, dtype=fp8.FP8),
                like.new_empty(1, rows, dtype=torch.float32),
            )
        made = []
        for name, value in zip(("fp8", "scale"), values, strict=True):
            with editor.graph.inserting_after(last):
                last = editor.graph.placeholder(f"{weight.name}_{name}")
            last.meta.update({"val": value, "fisopt.parameter": True})
            made.append(last)
        pairs.append((made[0], made[1]))
    return pairs


def _inserted(editor: GraphEditor, function: Any, *operands: fx.Node) -> Any:
    """Insert a function's operators here, on some nodes; return what it returns."""
    with editor.mode, torch.no_grad():
        fakes = [torch.empty_like(node.meta["val"]) for node in operands]
        return editor.copy(make_fx(function)(*fakes).graph, operands)


def _hand_over(module: fx.GraphModule, weights: QuantisedWeights, stages: list[_Stage]) -> None:
    """Quantise the weights that stages take, before they are called, and hand them over."""
    calls = [(stage, call) for stage in stages for call in stage.calls]
    paths = dict.fromkeys(str(c.args[i].target) for stage, c in calls for i in stage.weights)  # type: ignore[union-attr]
    if not paths:
        return
    graph = module.graph
    module.add_module(NAME, weights)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        held = graph.call_module(NAME, tuple(graph.get_attr(path) for path in paths))
        pieces = [graph.call_function(operator.getitem, (held, i)) for i in range(2 * len(paths))]
    place = {path: pieces[2 * i : 2 * i + 2] for i, path in enumerate(paths)}
    for stage, call in calls:
        pairs = [n for i in stage.weights for n in place[str(call.args[i].target)]]  # type: ignore[union-attr]
        call.args = (*(a for i, a in enumerate(call.args) if i not in stage.gone), *pairs)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    module.recompile()
