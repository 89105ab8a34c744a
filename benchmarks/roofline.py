"""How long a Program would take if every part of it ran at the rate that the device reaches.

Products run at the rate of a large matrix product, attentions at that of a large dense attention,
everything else at the rate of a large copy: what lies between two products is one kernel that
reads each operand and writes each result once.  Measured seconds over these say what is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import networkx
import torch
from torch import Tensor, fx

from fisopt import Program
from fisopt.codegen.lower import lower
from fisopt.rewrite.cost import contraction_flops, graph_cost, traffic

aten = torch.ops.aten
_PARTIAL = (aten.index_select.default, aten.index.Tensor, aten.slice.Tensor, aten.select.int)
"""Operators that read of their first operand no more than they write."""


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches, in units a second.

    Attributes:
        linear: FLOPs of a matrix product.
        attention: FLOPs of a dense attention.
        copy: bytes, read and written.
        fp8: FLOPs of a matrix product in FP8, where the device has one.
    """

    linear: float
    attention: float
    copy: float
    fp8: float | None = None

    @property
    def in_fp8(self) -> Ceilings | None:
        """Those of a model with its linears in FP8."""
        return None if self.fp8 is None else replace(self, linear=self.fp8)


@dataclass(frozen=True)
class Roofline:
    """Seconds of one forward call, by what they go to."""

    linear: float
    attention: float
    memory: float

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.memory

    def row(self) -> dict[str, float]:
        """The parts in milliseconds, for a table."""
        return {name: round(1e3 * value, 3) for name, value in asdict(self).items()}


def roofline(program: Program, ceilings: Ceilings) -> Roofline:
    """Predict one forward call of a Program on a device of some ceilings."""
    module = lower(program)
    linear = attention = moved = 0.0
    known: dict[str, tuple[float, float, float]] = {}
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        if name not in known:
            known[name] = _stage(module.get_submodule(name).graph)  # type: ignore[arg-type]
        for_linear, for_attention, for_bytes = known[name]
        linear += for_linear
        attention += for_attention
        moved += for_bytes
    return Roofline(linear / ceilings.linear, attention / ceilings.attention, moved / ceilings.copy)


def _stage(graph: fx.Graph) -> tuple[float, float, float]:
    """FLOPs of products and of attentions, and bytes of the rest, of one stage.

    Products that gather their operands move bytes besides.
    """
    flops = graph_cost(graph).flops
    attention = flops["self-attention"] + flops["cross-attention"]
    rest = sum(v for name, v in flops.items() if name != "other") - attention
    gathered = sum(traffic(n) for n in graph.nodes if contraction_flops(n))
    return rest, attention, gathered + sum(map(_moved, _kernels(graph)))


def _kernels(graph: fx.Graph) -> Iterator[set[fx.Node]]:
    """What is one kernel each: nodes that no product lies between, connected."""
    contractions = {n for n in graph.nodes if contraction_flops(n)}
    level: dict[fx.Node, int] = {}
    together: Any = networkx.Graph()
    for node in graph.nodes:
        above = ((level.get(n, 0) + (n in contractions)) for n in node.all_input_nodes)
        level[node] = max(above, default=0)
        if node.op != "call_function" or node in contractions:
            continue
        together.add_node(node)
        for n in node.all_input_nodes:
            if n in together and level[n] == level[node]:
                together.add_edge(n, node)
    yield from networkx.connected_components(together)


def _moved(kernel: set[fx.Node]) -> float:
    """Bytes that a kernel reads and writes; none where it only views."""
    if all(_is_view(n) for n in kernel):
        return 0.0
    read: dict[fx.Node, float] = {}
    for node in kernel:
        for n in node.all_input_nodes:
            if n not in kernel:
                size = _bytes(node if node.target in _PARTIAL else n)
                read[n] = max(read.get(n, 0.0), min(size, _bytes(n)))
    written = sum(_bytes(n) for n in kernel if any(user not in kernel for user in n.users))
    return sum(read.values()) + written


def _is_view(node: fx.Node) -> bool:
    target: Any = node.target
    return not isinstance(target, torch._ops.OpOverload) or any(
        r.alias_info is not None for r in target._schema.returns
    )


def _bytes(node: fx.Node) -> float:
    value = node.meta.get("val")
    return float(value.numel() * value.element_size()) if isinstance(value, Tensor) else 0.0
