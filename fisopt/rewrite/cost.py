"""The cost model: what a Program computes and moves, by operator class, at its shape.

FLOPs count a multiply-add as two.  Bytes are what each operator reads and writes if nothing is
fused, so they are an upper bound.  Operators that say what they move, as matching, gathering and
restoring tokens do, take their time by it and not by FLOPs.  Nothing is run: a 14B model on the
meta device is costed from its graph alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, get_args

import torch
from torch import fx

from fisopt.checked import checked
from fisopt.rewrite.analysis.structure import PRODUCTS, factors, self_attentions
from fisopt.rewrite.ops.operator import CostClass, declared
from fisopt.rewrite.program import Program, check_program

aten = torch.ops.aten
_OF_TORCH = ("aten", "prims", "prim")
FLOPS_A_SECOND, BYTES_A_SECOND = 600e12, 3e12
"""Rates of attention and of memory, as on an H100."""
FLOPS_A_BYTE = FLOPS_A_SECOND / BYTES_A_SECOND
"""FLOPs that an attention computes in the time that memory takes for one byte."""
CLASSES: tuple[CostClass, ...] = get_args(CostClass)
_PRODUCTS = (aten.matmul.default, aten._int_mm.default)
_CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.convolution.default,
)


@dataclass
class Cost:
    """FLOPs and bytes of a graph.

    Attributes:
        flops: FLOPs by operator class, see `CLASSES`.
        bytes: bytes read and written by unfused operators.
        traffic: bytes moved by memory-bound operators.
        sent: bytes that a rank sends to others.
        unknown: operators of other libraries without a declared cost, and their number of calls;
            fisopt counts only their bytes.
    """

    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.0))
    bytes: float = 0.0
    traffic: float = 0.0
    sent: float = 0.0
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        """All FLOPs."""
        return sum(self.flops.values())

    @property
    def work(self) -> float:
        """All FLOPs, plus those that the device could compute while it moves tokens."""
        return self.total + FLOPS_A_BYTE * self.traffic

    @property
    def attention_share(self) -> float:
        """Share of self-attention (scores and values) in the FLOPs."""
        return self.flops["self-attention"] / self.total if self.total else 0.0

    def add(self, other: Cost) -> None:
        """Add another cost to this one."""
        for name, flops in other.flops.items():
            self.flops[name] += flops
        self.bytes += other.bytes
        self.traffic += other.traffic
        self.sent += other.sent
        self.unknown += other.unknown


def not_predicted(*costs: Cost) -> str | None:
    """What a ratio of costs leaves out, in words, None if it is nothing."""
    unknown: Counter[str] = reduce(or_, (cost.unknown for cost in costs), Counter())
    calls = ", ".join(f"{name} ({count} calls)" for name, count in unknown.items())
    if not unknown:
        return None
    return (
        f"not in the prediction: {calls}; declare their cost with fisopt.operators.attention or "
        "fisopt.operator"
    )


@checked
def program_cost(program: Program) -> Cost:
    """Cost of one forward call of a Program."""
    check_program(program)
    total = called_cost(program)
    total.add(graph_cost(program.graph))
    return total


def called_cost(program: Program) -> Cost:
    """Cost of the blocks of one forward call, without the code around them."""
    total, known = Cost(), dict[str, Cost]()
    for node in program.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            if name not in known:
                known[name] = graph_cost(program.callee(node).graph)
            total.add(known[name])
    return total


def graph_cost(graph: fx.Graph) -> Cost:
    """Cost of the operators of one graph, without what it calls."""
    cost = Cost()
    visual = {n for a in self_attentions(graph) for n in a.members}
    scores = {n for a in self_attentions(graph) for n in _scores(a.result)}
    for node in graph.nodes:
        if not _is_operator(node):
            continue
        cost.bytes += sum(map(_bytes, [node, *node.all_input_nodes]))
        cost.traffic += traffic(node)
        cost.sent += sent(node)
        flops = contraction_flops(node)
        if flops is None and _is_unknown(node):
            cost.unknown[str(node.target._schema.name)] += 1
        elif flops is None:
            cost.flops["other"] += _elements(node)
        elif node in visual or node in scores:
            cost.flops["self-attention"] += flops
        elif node.target is aten.scaled_dot_product_attention.default:
            cost.flops["cross-attention"] += flops
        elif (made := declared(node.target)) is not None and made.flops is not None:
            cost.flops["cross-attention" if made.attention else made.counts_as] += flops
        elif node.target in _CONVOLUTIONS:
            cost.flops["convolution"] += flops
        else:
            cost.flops["linear"] += flops
    return cost


@checked
def predicted_ratio(dense: Program, optimised: Program) -> float:
    """The predicted speed-up: FLOPs of the dense Program over those of the optimised one.

    Moving tokens counts as the FLOPs that the device could compute in that time. `Cost.unknown`
    lists the operators that the ratio leaves out.
    """
    return program_cost(dense).work / program_cost(optimised).work


def _scores(result: fx.Node) -> Iterator[fx.Node]:
    """The product that made the attention weights of a written-out attention."""
    if result.target not in PRODUCTS:
        return
    node = factors(result)[0]
    while node.all_input_nodes:
        if node.target in PRODUCTS:
            yield node
            return
        node = node.all_input_nodes[0]


def contraction_flops(node: fx.Node) -> float | None:
    """FLOPs of a product, an attention or a convolution, None for every other node."""
    if not _is_operator(node):
        return None
    from torch.utils import flop_counter  # imports Triton where it is installed

    args = _operands(node)
    out = node.meta["val"]
    target: Any = node.target
    if (made := declared(target)) is not None and made.flops is not None:
        return float(made.flops(*args, **node.kwargs))
    if target is aten.linear.default:
        return float(2 * out.numel() * args[0].shape[-1])
    if target is aten.scaled_dot_product_attention.default:
        query, key, value = (a.shape for a in args[:3])
        rows = query[:-2].numel()  # any number of leading dimensions
        return float(2 * rows * query[-2] * key[-2] * (query[-1] + value[-1]))
    if target in _CONVOLUTIONS:
        weight = args[1].shape
        return float(2 * out.numel() * weight[1:].numel())
    if target in _PRODUCTS:
        return float(2 * out.numel() * args[0].shape[-1])
    formula = flop_counter.flop_registry.get(target.overloadpacket)
    return float(formula(*args, out_val=out)) if formula is not None else None


def traffic(node: fx.Node) -> float:
    """Bytes that an operator moves which takes its time by that, 0 for every other node."""
    made = declared(node.target)
    return _bytes_by(node, made.traffic if made is not None else None)


def sent(node: fx.Node) -> float:
    """Bytes that an operator sends to other ranks."""
    made = declared(node.target)
    return _bytes_by(node, made.sends if made is not None else None)


def _bytes_by(node: fx.Node, count: Callable[..., float] | None) -> float:
    return 0.0 if count is None else float(count(*_operands(node), **node.kwargs))


def _operands(node: fx.Node) -> list[Any]:
    return [n.meta["val"] if isinstance(n, fx.Node) else n for n in node.args]


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _is_unknown(node: fx.Node) -> bool:
    """Whether an operator is neither torch's nor declared, and does more than it says it does."""
    target: Any = node.target
    known = target.namespace in _OF_TORCH or torch.Tag.pointwise in target.tags
    return not known and declared(target) is None and bool(node.all_input_nodes)


def _elements(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.numel() if isinstance(value, torch.Tensor) else 0


def _bytes(node: fx.Node) -> float:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return float(sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor)))
