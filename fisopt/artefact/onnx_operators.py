"""What of ATen onnxruntime has no operators for, said otherwise before the export.

A choice between booleans, and filling some, becomes and, or, not; a stable sort becomes a top-k of
all entries, in which ONNX orders equal ones by their place; a squeeze of a dimension that is not
one goes, which ATen lets be and ONNX refuses.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.codegen.lowering import LoweringPass
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule

aten = torch.ops.aten


def _boolean_choice(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
    """``where(c, a, b)`` of booleans: ``c & a | ~c & b``."""
    if not _is_boolean(node):
        return None
    condition, a, b = node.args
    yes = editor.call(aten.logical_and.default, condition, a)
    no = editor.call(aten.logical_not.default, condition)
    return editor.call(aten.logical_or.default, yes, editor.call(aten.logical_and.default, no, b))


def _boolean_fill(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
    """``masked_fill(x, mask, value)`` of booleans: ``x | mask``, or ``x & ~mask``."""
    if not _is_boolean(node):
        return None
    x, mask, value = node.args
    if value:
        return editor.call(aten.logical_or.default, x, mask)
    return editor.call(aten.logical_and.default, x, editor.call(aten.logical_not.default, mask))


def _is_boolean(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool


def _sort(editor: GraphEditor, node: fx.Node) -> fx.Node:
    """A stable sort as the top-k of all entries."""
    return _top(editor, node, _operand(node))


def _argsort(editor: GraphEditor, node: fx.Node) -> fx.Node:
    """The places of a stable sort; onnxruntime has top-k of no integers below 32 bits."""
    operand = _operand(node)
    held = operand.meta["val"].dtype
    if not held.is_floating_point and held.itemsize < 4:
        operand = editor.call(aten._to_copy.default, operand, dtype=torch.int32)
    return editor.call(operator.getitem, _top(editor, node, operand), 1)


def _top(editor: GraphEditor, node: fx.Node, operand: fx.Node) -> fx.Node:
    """The top-k of all of an operand's entries in the order of a sort."""
    target: Any = node.target
    names = [a.name for a in target._schema.arguments]
    options = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    dim, largest = options.get("dim", -1), bool(options.get("descending", False))
    size = _operand(node).meta["val"].shape[dim]
    return editor.call(aten.topk.default, operand, size, dim, largest)


def _squeeze(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
    """A squeeze that changes nothing is its operand."""
    del editor
    operand = _operand(node)
    return operand if operand.meta["val"].shape == node.meta["val"].shape else None


def _operand(node: fx.Node) -> fx.Node:
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


RULES = (
    NodeRule("choice of booleans", {aten.where.self}, _boolean_choice),
    NodeRule("fill of booleans", {aten.masked_fill.Scalar}, _boolean_fill),
    NodeRule("sort", {aten.sort.stable, aten.sort.default}, _sort),
    NodeRule("argsort", {aten.argsort.stable}, _argsort),
    NodeRule("squeeze", {aten.squeeze.dim, aten.squeeze.dims}, _squeeze),
)
LEGALISATION = LoweringPass("legalise for ONNX", lambda module, root: RULES)
