"""Tile-sparse attention: frames attend to themselves and to a few global frames.

Source: Efficient-vDiT, arXiv:2502.06155, the part that needs no training.  Exact: the kept tiles
of the score matrix.  Left out: all others, by a mask over pairs of latent frames that differs from
layer to layer but not from prompt to prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import networkx as nx
import torch
from torch import fx

from fisopt.checked import ints
from fisopt.errors import OptionError, OptionTypeError, PreconditionError, shown
from fisopt.passes.mask_table import MaskTable
from fisopt.passes.masks import FrameMask, TileMask, frame_mask
from fisopt.rewrite.analysis import Attention, attentions, dependences, result_nodes, results
from fisopt.rewrite.axes import FrameAxis, axes_of, carries_frames
from fisopt.rewrite.operands import PlainAttention, plain_attention
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.pass_base import Pass, Stage, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import BY, Rewriter
from fisopt.rewrite.tile_plan import TilePlan, tile_plan

aten = torch.ops.aten
DEFAULT = TileMask(2)
TILE = torch.ops.fisopt.tile_attention.default


@dataclass(frozen=True)
class TileAttention(Pass):
    """Replace self-attention over the video by attention over kept tiles of frames.

    Before and after (the same for attention that is written out in products and a softmax)::

        %y = aten::scaled_dot_product_attention(%q, %k, %v, %mask)

        %y = fisopt::tile_attention(%q, %k, %v, %mask, @rows, @keys, pairs, None)

    Text that is joined to the sequence sees everything and is seen by all, and so are keys of the
    past that a cache holds; the model's own masks hold as before.  Attention to text, and
    attention inside one frame, stay as they are.  In a block that runs on some frames only, the
    mask is that of their number.

    Attributes:
        mask: which tiles are kept; an int is the k of ``TileMask``.
        dense_blocks: video blocks that stay dense, by number in execution order; negative counts
            from the end.
        dense_steps: denoising steps that stay dense; negative counts from the last step.
        table: a mask for every block, in place of ``mask``: a MaskTable, a mapping from block
            paths to masks or None, or the path of a file that ``fisopt search`` wrote.

    Source: Efficient-vDiT, arXiv:2502.06155.
    """

    stage: ClassVar[Stage] = "attention"

    mask: FrameMask | int = DEFAULT
    dense_blocks: tuple[int, ...] = ()
    dense_steps: tuple[int, ...] = ()
    table: MaskTable | Mapping[str, FrameMask | int | None] | Path | str | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "mask", frame_mask(self.mask))
        except (TypeError, ValueError) as error:
            raise OptionError(f"TileAttention: {error}") from error
        for option in ("dense_blocks", "dense_steps"):
            object.__setattr__(self, option, ints(self, option))
        if isinstance(self.table, (str, Path)):
            object.__setattr__(self, "table", MaskTable.load(self.table))
        elif isinstance(self.table, Mapping):
            object.__setattr__(self, "table", MaskTable(self.table))
        elif self.table is not None and not isinstance(self.table, MaskTable):
            raise OptionTypeError(
                "TileAttention: table must be a MaskTable, a mapping from block paths to masks or "
                f"the path of a file, got {shown(self.table)}"
            )

    @property
    def stepwise(self) -> bool:
        """Whether some steps are dense."""
        return bool(self.dense_steps)

    def at(self, step: Step) -> TileAttention | None:
        """None at dense steps."""
        return None if step.among(self.dense_steps, self.name) else self

    def requires(self, program: Program) -> None:
        """Check the masks against the frames, the table and the dense blocks against the blocks."""
        blocks = program.blocks
        for index in self.dense_blocks:
            if not -len(blocks) <= index < len(blocks):
                raise PreconditionError(
                    f"dense_blocks={self.dense_blocks}: {index} is outside the model's "
                    f"{len(blocks)} video blocks",
                    pass_name=self.name,
                )
        paths = [_path(call) for call in blocks]
        if isinstance(self.table, MaskTable):
            self._check_table(self.table, paths)
        for path, mask in zip(paths, self._masks(program), strict=True):
            if mask is not None:
                try:
                    mask.table(program.layout.frames)
                except ValueError as error:
                    raise PreconditionError(
                        f"{error} ({program.layout} tokens)", pass_name=self.name, node=path
                    ) from error

    def _check_table(self, table: MaskTable, paths: list[str]) -> None:
        named = [path for path, _ in table.items()]
        if sorted(named) == sorted(paths):
            return
        unknown = [n for n in named if n not in paths]
        missing = [n for n in paths if n not in named]
        raise PreconditionError(
            f"the table is for {len(named)} blocks, the model has {len(paths)}"
            + (f"; it has no blocks {unknown[:4]}" if unknown else "")
            + (f"; not in the table: {missing[:4]}" if missing else "")
            + "; a table names every video block, None is dense",
            pass_name=self.name,
        )

    def _masks(self, program: Program) -> list[FrameMask | None]:
        """The mask of every block, None where it stays dense."""
        blocks = program.blocks
        dense = {index % len(blocks) for index in self.dense_blocks}
        table = dict(self.table.items()) if isinstance(self.table, MaskTable) else None
        return [
            None
            if i in dense
            else table[_path(call)]
            if table is not None
            else frame_mask(self.mask)
            for i, call in enumerate(blocks)
        ]

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the attentions of the sparse blocks one by one."""
        program = rewriter.program
        frames = program.layout.frames
        masks = self._masks(program)
        if all(mask is None or bool(mask.table(frames).all()) for mask in masks):
            rewriter.note(f"dense: every tile is kept at {frames} latent frames")
            return
        tiler = _Tiler(rewriter)
        for call, mask in zip(program.blocks, masks, strict=True):
            tiler.block(call, mask, named=self.table is not None)
        if not tiler.attending:
            raise PreconditionError(
                "no block has self-attention across frames; there is nothing to make sparse",
                pass_name=self.name,
            )
        if tiler.within:
            rewriter.note(f"{tiler.within} blocks have no self-attention across frames")
        if not tiler.densities:
            return
        density = sum(tiler.densities) / len(tiler.densities)
        rewriter.note(
            f"{len(tiler.densities)} of {tiler.attending} blocks tile-sparse, density "
            f"{density:.3f} (sparsity {1 - density:.3f}) of their self-attention: "
            + ", ".join(tiler.used)
        )


class _Tiler:
    """The state of one run: block graphs by what their plans have in common, and the figures."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.graphs: dict[object, fx.GraphModule] = {}
        self.densities: list[float] = []
        self.used: dict[str, None] = {}
        self.attending = self.within = 0

    def block(self, call: fx.Node, mask: FrameMask | None, *, named: bool) -> None:
        """Make the self-attention of one block sparse."""
        where = str(call.meta["fisopt.region"])
        body = self.rewriter.program.callee(call)
        found = [a for a in attentions(body.graph) if _across_frames(body.graph, a)]
        if not found:
            self.within += 1
            if named and mask is not None:
                self.rewriter.skip(
                    where, "the table gives it a mask, but it has no video self-attention"
                )
            return
        self.attending += 1
        if mask is None:
            return
        read = [_read(body.graph, a) for a in found]
        plans: list[TilePlan] = []
        for each in read:
            plan = each if isinstance(each, str) else _plan(each, mask)
            if isinstance(plan, str):
                self.rewriter.skip(where, plan)
                return
            plans.append(plan)
        if all(plan.density == 1.0 for plan in plans):
            return
        kept = [each for each in read if not isinstance(each, str)]
        self._rewrite(call, found, kept, plans, mask)
        seen = (axis.frames for each in kept if (axis := sequence_axis(each.query)))
        self.used |= dict.fromkeys(mask.at(frames) for frames in seen)
        self.densities.append(sum(plan.density for plan in plans) / len(plans))

    def _rewrite(
        self,
        call: fx.Node,
        found: list[Attention],
        read: list[PlainAttention],
        plans: list[TilePlan],
        mask: FrameMask,
    ) -> None:
        rewriter = self.rewriter
        outputs = results(rewriter.program.callee(call).graph)
        old = result_nodes(call, len(outputs))
        with rewriter.before(call):
            tables = [self._tables(o, p, mask) for o, p in zip(read, plans, strict=True)]
            key = (call.target, tuple((tuple(p.keys.shape), p.pairs) for p in plans))
            if key not in self.graphs:
                self.graphs[key] = self._graph(call, found, read, plans, tables)
            pieces = rewriter.call_block(
                self.graphs[key],
                [*call.args, *(t for pair in tables for t in pair)],  # type: ignore[list-item]
                like=call,
                name=f"{call.target}_tiles",
                axes=[axes_of(n) for n in outputs],
            )
            for result, piece in zip(old, pieces, strict=True):
                if result is not None:
                    rewriter.replace_uses(result, piece)

    def _tables(
        self, read: PlainAttention, plan: TilePlan, mask: FrameMask
    ) -> tuple[fx.Node, fx.Node]:
        """The plan as buffers; equal plans are the same buffers."""
        queries, keys = sequence_axis(read.query), sequence_axis(read.value)
        assert queries is not None
        assert keys is not None
        device = read.query.meta["val"].device
        form = _form(queries)
        rows = self.rewriter.buffer(f"rows_{form}", plan.rows.to(device))
        if keys != queries:
            form += f"_of_{_form(keys)}"
        return rows, self.rewriter.buffer(f"keys_{mask.label}_{form}", plan.keys.to(device))

    def _graph(
        self,
        call: fx.Node,
        found: list[Attention],
        read: list[PlainAttention],
        plans: list[TilePlan],
        tables: list[tuple[fx.Node, fx.Node]],
    ) -> fx.GraphModule:
        """A copy of a block's graph with its attentions replaced."""
        body = self.rewriter.program.callee(call)
        inner = self.rewriter.inside(body)
        twin = dict(zip(body.graph.nodes, inner.graph.nodes, strict=True))
        for i, (attention, each, plan) in enumerate(zip(found, read, plans, strict=True)):
            rows, keys = (
                inner.argument(f"tiles_{name}_{i}", held.shape, held.dtype, held.device)
                for name, table in zip(("rows", "keys"), tables[i], strict=True)
                if isinstance(held := table.meta["val"], torch.Tensor)
            )
            dense = twin[attention.result]
            with inner.before(dense):
                key = twin[each.key]
                if each.key_columns:
                    key = inner.call(aten.transpose.int, key, -2, -1)
                sparse = inner.call(
                    TILE,
                    twin[each.query],
                    key,
                    twin[each.value],
                    _mask(inner, each, twin),
                    rows,
                    keys,
                    plan.pairs,
                    each.scale,
                )
            inner.replace_uses(dense, sparse)
        inner.erase_dead()
        inner.program.graph_module.recompile()
        return inner.program.graph_module


def _mask(inner: Rewriter, read: PlainAttention, twin: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The mask of an attention in a copy of its graph, as something that is seen or added."""
    if read.mask is None or read.fill is None:
        return None if read.mask is None else twin[read.mask]
    zeros = inner.call(aten.zeros_like.default, twin[read.mask], dtype=read.query.meta["val"].dtype)
    args = (zeros if a in read.path else twin.get(a, a) for a in read.fill.args)  # type: ignore[arg-type]
    return inner.call(read.fill.target, *args)


def sequence_axis(node: fx.Node, dim: int = -2) -> FrameAxis | None:
    """The frames of a query, key or value along its sequence, None if it holds none."""
    axes = axes_of(node)
    return axes[dim] if len(axes) >= -dim else None


def _form(axis: FrameAxis) -> str:
    return f"f{axis.frames}x{axis.inner}_{axis.before}_{axis.after}"


def _frames(axis: FrameAxis) -> FrameAxis:
    """The frames of a sequence, without what is before and after them: both are global."""
    return replace(axis, before=0, after=0)


def _path(call: fx.Node) -> str:
    return str(call.meta["fisopt.region"])


def _across_frames(graph: fx.Graph, attention: Attention) -> bool:
    """Whether an attention joins frames, or did before another pass edited its operands."""
    if _editor(graph, attention) is not None:
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
            f"({made.target}); frames of a tile mask have no meaning on top of that: keep one "
            "of the two out of the block, see dense_blocks"
        )
    read = plain_attention(attention)
    if isinstance(read, str):
        return f"its attention cannot be read: {read}"
    for flag, given in (("dropout", read.dropout), ("a causal flag", read.causal)):
        if given:
            return f"its attention has {flag} ({given}); a tile mask is for neither"
    return read


def _plan(read: PlainAttention, mask: FrameMask) -> TilePlan | str:
    """The plan of a mask for an attention, or why there is none."""
    queries = sequence_axis(read.query)
    keys = sequence_axis(read.value)
    if queries is None or keys is None or _frames(queries) != _frames(keys):
        return (
            f"its queries are {queries} and its keys {keys}: a mask over frames wants the same "
            "frames of both (FrameInterleave: kv='anchors')"
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
