"""Which linears of a graph pay in FP8, and the rule that puts their operators in the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.codegen import fp8
from fisopt.codegen.choose import Choice
from fisopt.codegen.stages import inserted
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule
from fisopt.rewrite.relations.table import argument

aten = torch.ops.aten
NAME = "fp8_weights"
"""Where a lowered graph holds what quantises its weights, and how errors call the rule."""
MULTIPLE = 16
"""What the features of FP8 products are multiples of."""
SMALL = 512
"""With fewer features a product gains less than quantising its rows costs; where it is simulated,
models are smaller: with less than half of the features that others have."""
FEW = 16
"""Rows of text and time are fewer than this part of the most rows that a linear has."""
UNCOUNTED = "the prediction counts FLOPs, so it leaves out the gain of FP8"
Pairs = Mapping[Any, tuple[fx.Node, fx.Node]]
"""By the node of a weight: the nodes of its rows in FP8 and of their scales."""


@dataclass(frozen=True)
class Limits:
    """What linears pay, beside the others of their graph.

    Attributes:
        most: the most rows that one of them has.
        small: with fewer features a linear does not gain.
        simulate: whether they are computed without FP8 units.
    """

    most: int
    small: int
    simulate: bool

    @staticmethod
    def of(linears: Iterable[fx.Node], *, simulate: bool) -> Limits:
        """The limits of some linears.

        Raises:
            LoweringError: a device has no FP8, and nothing is simulated.
        """
        every = list(linears)
        for device in () if simulate else {linear.meta["val"].device for linear in every}:
            fp8.check_device(device)
        widest = max(map(_features, every), default=0)
        most = max(map(_rows, every), default=0)
        return Limits(most, widest // 2 if simulate else SMALL, simulate)

    def divided(
        self, linears: Iterable[fx.Node], computed: Callable[[fx.Node], bool]
    ) -> tuple[list[fx.Node], Counter[str]]:
        """The linears that change, and how many stay as they are, by reason.

        Args:
            linears: of one graph.
            computed: whether the weight of one of them is none of the model's own.
        """
        taken, left = list[fx.Node](), Counter[str]()
        for linear in linears:
            why = "weights that are computed" if computed(linear) else self._refusal(linear)
            if why is None:
                taken.append(linear)
            else:
                left[why] += 1
        return taken, left

    def _refusal(self, linear: fx.Node) -> str | None:
        """Why a linear stays as it is, None if it does not."""
        held: Any = linear.args[1]
        weight: torch.Tensor = held.meta["val"]
        sizes = " x ".join(map(str, weight.shape))
        if _rows(linear) * FEW < self.most:
            return f"{_rows(linear)} rows, others have {self.most}"
        if any(size % MULTIPLE for size in weight.shape):
            return f"{sizes}, wanted multiples of {MULTIPLE}"
        floats = (torch.bfloat16, torch.float16, *([torch.float32] if self.simulate else []))
        if weight.dtype not in floats:
            return f"weights in {weight.dtype}"
        return f"{sizes}, too small to gain" if _features(linear) < self.small else None

    def choice(self, count: int, left: Counter[str]) -> Choice:
        """What was changed and what was not, for the report."""
        others = "".join(f"; {n} not: {reason}" for reason, n in left.items())
        return Choice(
            "linear",
            f"{'simulated fp8' if self.simulate else 'fp8'} in {count} of {count + left.total()}",
            f"e4m3, one scale per token and output channel{others}; {UNCOUNTED}",
        )

    def rule(self, linears: Iterable[fx.Node], pairs: Pairs) -> NodeRule:
        """The rule that lets linears multiply in FP8; linears of the same rows share them."""
        rows: dict[Any, Any] = {}

        def made(editor: GraphEditor, node: fx.Node) -> Any:
            x: Any = node.args[0]
            if x not in rows:
                flat = editor.call(aten.reshape.default, x, [-1, x.meta["val"].shape[-1]])
                rows[x] = inserted(editor, fp8.quantised, flat)
            out: torch.Tensor = node.meta["val"]
            bias = argument(node, 2, "bias", None)
            operands = (*rows[x], *pairs[node.args[1]], *([] if bias is None else [bias]))
            result = inserted(editor, _Product(out.dtype, self.simulate), *operands)
            return editor.call(aten.reshape.default, result, list(out.shape))

        return NodeRule(NAME, set(linears).__contains__, made)


@dataclass(frozen=True)
class _Product:
    """The product of rounded rows and weights, with a bias or without."""

    dtype: torch.dtype
    simulate: bool

    def __call__(self, *operands: torch.Tensor) -> torch.Tensor:
        rows, row_scale, weight, weight_scale, *bias = operands
        multiply = fp8.simulated if self.simulate else fp8.product
        return multiply(
            rows, row_scale, weight, weight_scale, bias[0] if bias else None, self.dtype
        )


def linears_of(graph: fx.Graph) -> list[fx.Node]:
    """The linears of a graph."""
    return [node for node in graph.nodes if node.target is aten.linear.default]


def _rows(linear: fx.Node) -> int:
    out: torch.Tensor = linear.meta["val"]
    return out.shape[:-1].numel()


def _features(linear: fx.Node) -> int:
    weight: Any = linear.args[1]
    return int(min(weight.meta["val"].shape))
