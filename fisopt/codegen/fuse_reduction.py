"""Fusion of token reduction: reduce, attend and restore become one operator.

    %r = fisopt::reduce_tokens(%q, %m, None, 2)
    %k = fisopt::reduce_tokens(%key, %n, None, 2)
    %v = fisopt::reduce_tokens(%value, %n, None, 2)
    %s = aten::scaled_dot_product_attention(%r, %k, %v)
    %y = fisopt::restore_tokens(%s, %o, 2, 5, 0, 0)

    %y = fisopt::reduce_attend_restore(%q, %key, %value, None, %m, %n, %o, None, 5, 0, 0)

Means of tokens, attention written out and results that something else reads too stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule
from fisopt.rewrite.relations.table import argument

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_REDUCE = torch.ops.fisopt.reduce_tokens.default
_RESTORE = torch.ops.fisopt.restore_tokens.default
_FUSED = torch.ops.fisopt.reduce_attend_restore.default


def fuse_reduction(device: str = "cuda") -> NodeRule:
    """Every reduced attention that runs on a kind of device becomes one operator."""

    def fused(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
        operands = _operands(node) if node.meta["val"].device.type == device else None
        return None if operands is None else editor.call(_FUSED, *operands)

    return NodeRule("reduced attention", {_RESTORE}, fused)


def _operands(restore: fx.Node) -> tuple[Any, ...] | None:
    """What the fused operator takes, None where the three do not belong together."""
    attention, origin, dim, *place = restore.args
    if not isinstance(attention, fx.Node) or attention.target is not _ATTENTION:
        return None
    if set(attention.users) != {restore}:
        return None
    if argument(attention, 5, "is_causal", False) or argument(attention, 4, "dropout_p", 0.0):
        return None
    if argument(attention, 7, "enable_gqa", False):
        return None
    query, key, value = (_reduced(operand, dim) for operand in attention.args[:3])
    if query is None or (key is None) != (value is None):
        return None
    kept = None
    tensors: list[Any] = [query[0], *attention.args[1:3]]
    if key is not None and value is not None:
        if key[1] is not value[1]:
            return None
        kept, tensors[1:] = key[1], [key[0], value[0]]
    mask = argument(attention, 3, "attn_mask", None)
    scale = argument(attention, 6, "scale", None)
    return (*tensors, mask, query[1], kept, origin, scale, *place)


def _reduced(node: Any, dim: Any) -> tuple[Any, Any] | None:
    """What an operand was reduced from along the sequence, and what was kept."""
    if not isinstance(node, fx.Node) or node.target is not _REDUCE:
        return None
    source, kept, origin, along = node.args
    return (source, kept) if origin is None and along == dim else None
