"""The graph of one block as an SVG: a box for each product, and for what lies between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.cost import contraction_flops

WIDTH, HEIGHT = 190, 34
GAPS = (16, 26)
"""Pixels between boxes of a row, and between rows."""
NAMED = 3
"""Operators that a box of several names."""
MOVES = (
    *("reshape", "permute", "getitem", "split", "unbind"),
    *("slice", "empty_like", "expand", "clone"),
)
"""What a box of several names last: it computes nothing."""


@dataclass(eq=False)
class Box:
    """Some operators that are drawn as one.

    Attributes:
        nodes: the operators.
        row: its place from the top.
        column: its place from the left.
    """

    nodes: list[fx.Node]
    row: int
    column: float = 0.0
    sources: set[Box] = field(default_factory=set)


def block_svg(block: Block, frames: int) -> str:
    """Draw a block.

    Args:
        block: the block.
        frames: frames of the whole video; boxes that compute fewer are coloured.
    """
    boxes = _boxes(block)
    rows: dict[int, list[Box]] = {}
    for box in boxes:
        rows.setdefault(box.row, []).append(box)
    for place, row in enumerate(sorted(rows)):
        _order(rows[row])
        for box in rows[row]:
            box.row = place
    width = max((len(row) for row in rows.values()), default=1)
    return _drawn(boxes, [rows[row] for row in sorted(rows)], width, frames)


def _boxes(block: Block) -> list[Box]:
    """Group nodes: each product for itself, and what is connected between products together."""
    inputs = {block.stream} if block.stream is not None else set()
    nodes = [n for n in block.body.graph.nodes if n.op == "call_function" or n in inputs]
    levels: dict[fx.Node, int] = {}
    box_of: dict[fx.Node, Box] = {}
    for node in nodes:
        sources = [n for n in node.all_input_nodes if n in levels]
        level = max(
            (levels[n] + (n.op == "call_function" and _is_product(n)) for n in sources), default=0
        )
        levels[node] = level
        if node.op == "placeholder":
            box_of[node] = Box([node], -1)
            continue
        if _is_product(node):
            box_of[node] = Box([node], 2 * level + 1)
            continue
        joined = {box_of[n]: None for n in sources if box_of[n].row == 2 * level}
        box = next(iter(joined), None) or Box([], 2 * level)
        for other in list(joined)[1:]:
            box.nodes += other.nodes
            box_of.update(dict.fromkeys(other.nodes, box))
        box.nodes.append(node)
        box_of[node] = box
    for node in nodes:
        used = {box_of[n] for n in node.all_input_nodes if n in box_of}
        box_of[node].sources |= used - {box_of[node]}
    return list(dict.fromkeys(box_of.values()))


def _is_product(node: fx.Node) -> bool:
    return contraction_flops(node) is not None


def _order(row: list[Box]) -> None:
    """Place the boxes of a row below what they take."""

    def wanted(box: Box) -> float:
        above = [source.column for source in box.sources]
        return sum(above) / len(above) if above else 0.0

    row.sort(key=wanted)
    for index, box in enumerate(row):
        box.column = index - (len(row) - 1) / 2


def _drawn(boxes: Sequence[Box], rows: Sequence[Sequence[Box]], columns: int, frames: int) -> str:
    step = (WIDTH + GAPS[0], HEIGHT + GAPS[1])
    size = (columns * step[0] + 2 * GAPS[0], len(rows) * step[1] + GAPS[1])

    def corner(box: Box) -> tuple[float, float]:
        return size[0] / 2 + box.column * step[0] - WIDTH / 2, box.row * step[1] + GAPS[1] / 2

    lines = [
        _edge(*corner(source), *corner(box), box.row - source.row > 1)
        for box in boxes
        for source in sorted(box.sources, key=lambda s: (s.row, s.column))
    ]
    shapes = [_shape(box, *corner(box), frames) for box in boxes]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" '
        f'width="{size[0]:.0f}" height="{size[1]:.0f}" role="img" font-family="sans-serif">'
    )
    return "".join([head, *lines, *shapes, "</svg>"])


def _edge(x1: float, y1: float, x2: float, y2: float, far: bool) -> str:
    """A line from below one box to above another, around those between if it goes far."""
    x1, x2, y1 = x1 + WIDTH / 2, x2 + WIDTH / 2, y1 + HEIGHT
    aside = WIDTH * 0.62 if far and abs(x1 - x2) < WIDTH else 0.0
    middle = (y1 + y2) / 2
    bend = f"{x1 + aside:.0f} {middle:.0f} {x2 + aside:.0f} {middle:.0f}"
    path = f"M{x1:.0f} {y1:.0f}C{bend} {x2:.0f} {y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#9aa1ab"/>'


def _shape(box: Box, x: float, y: float, frames: int) -> str:
    count = _frames(box.nodes[-1])
    fewer = count is not None and count < frames
    product = _is_product(box.nodes[0])
    fill = ("#ffd9a8" if product else "#fff1de") if fewer else "#cfe3f5" if product else "#eef1f5"
    first, second = _words(box, count, frames)
    listed = ", ".join(map(_name, box.nodes))
    return (
        f"<g><title>{escape(listed)}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="4" '
        f'fill="{fill}" stroke="#9aa1ab"/>'
        f'<text x="{x + WIDTH / 2:.0f}" y="{y + 14:.0f}" font-size="11" text-anchor="middle">'
        f"{escape(first)}</text>"
        f'<text x="{x + WIDTH / 2:.0f}" y="{y + 27:.0f}" font-size="10" fill="#5b616b" '
        f'text-anchor="middle">{escape(second)}</text></g>'
    )


def _words(box: Box, count: int | None, frames: int) -> tuple[str, str]:
    """What a box says: its operators, and the shape of its result."""
    names = Counter(map(_name, box.nodes))
    ranked = sorted(names, key=lambda name: (name in MOVES, list(names).index(name)))
    more = f" +{len(ranked) - NAMED}" if len(ranked) > NAMED else ""
    value = box.nodes[-1].meta.get("val")
    shape = "x".join(map(str, value.shape)) if isinstance(value, torch.Tensor) else ""
    told = "" if count is None else f", {count} of {frames} frames"
    return ", ".join(ranked[:NAMED]) + more, f"{shape}{told}"


def _frames(node: fx.Node) -> int | None:
    return next((axis.frames for axis in axes_of(node) if axis is not None), None)


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if node.op == "placeholder":
        return "video"
    if isinstance(target, torch._ops.OpOverload):
        name = str(target._opname)
        return "attention" if name == "scaled_dot_product_attention" else name
    return str(getattr(target, "__name__", target))
