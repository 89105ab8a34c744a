"""Attentions that are one operator: torch's own, and those of other functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.ops.attend_by import attend_by
from fisopt.rewrite.relations.table import argument, operand_of

FUSED = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class FusedAttention:
    """What an attention reads that is one operator.

    Attributes:
        query: rows [..., N, D].
        key: [..., M, D].
        value: [..., M, E].
        mask: broadcastable to [..., N, M], bool (True: seen) or added to the scores.
        scale: of the scores; None is one over the root of D.
        own: the function that runs it, None for torch's.
        plain: whether it is softmax(scale * query @ key.T + mask) @ value, beside dropout and the
            causal flag; if not, only its function knows what it is.
        dropout: probability that a weight is dropped.
        causal: whether a query sees only the keys up to its own position.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float | None
    own: str | None = None
    plain: bool = True
    dropout: float = 0.0
    causal: bool = False


def fused(node: fx.Node) -> FusedAttention | None:
    """Read an attention that is one operator, None for every other node."""
    if node.target is FUSED:
        query, key, value = (operand_of(node, i) for i in range(3))
        return FusedAttention(
            query,
            key,
            value,
            mask=argument(node, 3, "attn_mask"),
            scale=argument(node, 6, "scale"),
            dropout=argument(node, 4, "dropout_p", 0.0),
            causal=argument(node, 5, "is_causal", False),
        )
    if node.target is attend_by.target:
        operands: tuple[Any, ...] = node.args
        return FusedAttention(*operands)
    return None
