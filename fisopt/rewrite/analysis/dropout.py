"""Dropout that is active: a rewritten model would draw other numbers than the model itself."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations.table import argument

aten = torch.ops.aten
_BY_MODE = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.native_dropout.default,
}


def drops(node: fx.Node) -> float:
    """The probability with which an operator drops values, 0 if it drops none."""
    if node.target is aten.scaled_dot_product_attention.default:
        return float(argument(node, 4, "dropout_p", 0.0))
    if node.target in _BY_MODE and argument(node, 2, "train") in (True, None):
        return float(argument(node, 1, "p", 0.0))
    return 0.0


def active_dropout(graph: fx.Graph) -> tuple[fx.Node, float] | None:
    """The first operator of a graph that drops values at random, and how often."""
    found = ((node, drops(node)) for node in graph.nodes if node.op == "call_function")
    return next(((node, p) for node, p in found if p), None)
