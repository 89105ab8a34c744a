"""Blocks whose attention is made tile-sparse: what can be, and what is written in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import networkx as nx
import torch
from torch import fx

from fisopt.passes.tiling.masks import FrameMask
from fisopt.rewrite.analysis.structure import Attention, dependences, in_window
from fisopt.rewrite.axes import FrameAxis, axes_of, carries_frames
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.editor import BY
from fisopt.rewrite.edit.operands import PlainAttention, plain_attention
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.relations.table import shape
from fisopt.rewrite.tile_plan import TilePlan, tile_plan

aten = torch.ops.aten
TILE = torch.ops.fisopt.tile_attention.default


@dataclass(frozen=True)
class Tiles:
    """One attention that becomes tile-sparse.

    Attributes:
        dense: the node that holds what it attends to.
        read: its operands.
        plan: the tiles that are kept.
        mask: the mask that the plan is of.
    """

    dense: fx.Node
    read: PlainAttention
    plan: TilePlan
    mask: FrameMask

    @property
    def queries(self) -> FrameAxis:
        """The frames of its queries."""
        axis = sequence_axis(self.read.query)
        assert axis is not None
        return axis

    def write(self, edit: BlockEdit, number: int) -> None:
        """Put the sparse attention in the place of the dense one."""
        read, dense = self.read, edit.twin(self.dense)
        query, key, value = (edit.twin(n) for n in (read.query, read.key, read.value))
        rows, keys = self._tables(edit, number)
        with edit.before(dense):
            if read.key_columns:
                key = edit.call(aten.transpose.int, key, -2, -1)
            mask = self._mask(edit)
            operands = (query, key, value, mask, rows, keys, self.plan.pairs, read.scale)
            sparse = edit.call(TILE, *operands)
        edit.replace_uses(dense, sparse)

    def _tables(self, edit: BlockEdit, number: int) -> tuple[fx.Node, fx.Node]:
        """The plan as constants; equal plans are the same ones."""
        keys = sequence_axis(self.read.value)
        assert keys is not None
        device, form = self.read.query.meta["val"].device, _form(self.queries)
        rows = edit.buffer(f"rows_{form}", self.plan.rows.to(device), f"tiles_rows_{number}")
        if keys != self.queries:
            form += f"_of_{_form(keys)}"
        name = f"keys_{self.mask.label}_{form}"
        return rows, edit.buffer(name, self.plan.keys.to(device), f"tiles_keys_{number}")

    def _mask(self, edit: BlockEdit) -> fx.Node | None:
        """The mask of the dense attention, as something that is seen or added."""
        read = self.read
        if read.mask is None or read.fill is None:
            return None if read.mask is None else edit.twin(read.mask)
        kind = read.query.meta["val"].dtype
        zeros = edit.call(aten.zeros_like.default, edit.twin(read.mask), dtype=kind)
        args = fx.node.map_arg(read.fill.args, lambda n: zeros if n in read.path else edit.twin(n))
        return edit.call(read.fill.target, *args)


def sequence_axis(node: fx.Node, dim: int = -2) -> FrameAxis | None:
    """The frames of a query, key or value along its sequence, None if it holds none."""
    axes = axes_of(node)
    return axes[dim] if len(axes) >= -dim else None


def _form(axis: FrameAxis) -> str:
    return f"f{axis.frames}x{axis.inner}_{axis.before}_{axis.after}"


def _frames(axis: FrameAxis) -> FrameAxis:
    """The frames of a sequence, without what is before and after them: both are global."""
    return replace(axis, before=0, after=0)


def across_frames(graph: fx.Graph, attention: Attention) -> bool:
    """Whether an attention joins frames, or did before another pass edited its operands."""
    if _editor(graph, attention) is not None:
        return True
    if in_window(graph, attention):
        return True
    read = plain_attention(attention)
    if isinstance(read, str):
        return sequence_axis(attention.value) is not None
    return sequence_axis(read.query) is not None and sequence_axis(read.value) is not None


def _editor(graph: fx.Graph, attention: Attention) -> fx.Node | None:
    """The operator of another pass by which an attention no longer runs over whole frames."""
    if attention.result.target is TILE:
        return attention.result
    read = plain_attention(attention)
    lost = () if isinstance(read, str) else (read.query, read.value)
    for operand in (n for n in lost if sequence_axis(n) is None):
        before = nx.ancestors(dependences(graph), operand) | {operand}
        foreign: list[fx.Node] = [n for n in graph.nodes if n in before and _loses_frames(n)]
        if foreign:
            return foreign[0]
    return None


def _loses_frames(node: fx.Node) -> bool:
    """Whether an operator of a pass takes frames and returns something else."""
    framed = any(carries_frames(n) for n in node.all_input_nodes)
    return declared(node.target) is not None and framed and not carries_frames(node)


def _read(graph: fx.Graph, attention: Attention) -> PlainAttention | str:
    """The operands of an attention that can be made sparse, or why it cannot."""
    if (made := _editor(graph, attention)) is not None:
        return (
            f"{made.meta.get(BY, 'another pass')} has edited the attention of this block "
            f"({made.target}), so a mask over frames no longer applies: use blocks= to keep one "
            "of the two passes out of the block"
        )
    read = plain_attention(attention)
    if isinstance(read, str):
        return f"its attention cannot be read: {read}"
    for flag, given in (("dropout", read.dropout), ("a causal flag", read.causal)):
        if given:
            return f"its attention has {flag} ({given}); a tile mask supports neither"
    return read


def _plan(read: PlainAttention, mask: FrameMask) -> TilePlan | str:
    """The plan of a mask for an attention, or why there is none."""
    queries = sequence_axis(read.query)
    keys = sequence_axis(read.value)
    if queries is not None and keys is None:
        return (
            f"its keys are a window of {shape(read.value)[-2]} with unknown positions of the "
            "frames: a mask over frames needs the past keys, then the new ones, more with every "
            "frame"
        )
    if queries is None or keys is None or _frames(queries) != _frames(keys):
        return (
            f"its queries are {queries} and its keys {keys}: a mask over frames needs the same "
            "frames in both (FrameInterleave: kv='anchors')"
        )
    sizes = read.query.meta["val"].shape
    heads = sizes[-3] if len(sizes) > 2 else 1
    try:
        table = mask.table(queries.frames)
        if table.ndim == 3 and table.shape[0] not in (1, heads):
            return f"the mask is for {table.shape[0]} heads, the attention has {heads}"
        return tile_plan(table, queries, keys)
    except ValueError as error:
        return str(error)


def tiles_of(graph: fx.Graph, attention: Attention, mask: FrameMask) -> Tiles | str:
    """What a mask makes of an attention, or why it can make nothing."""
    read = _read(graph, attention)
    plan = read if isinstance(read, str) else _plan(read, mask)
    if isinstance(read, str) or isinstance(plan, str):
        return str(plan)
    return Tiles(attention.result, read, plan, mask)
