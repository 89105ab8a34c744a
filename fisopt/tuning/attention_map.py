"""Attention maps: how much of its attention each latent frame gives to each, block by block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.rewrite.analysis.structure import self_attentions
from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.edit.operands import PlainAttention, plain_attention
from fisopt.rewrite.program import Program
from fisopt.rewrite.tile_plan import bounds


def frame_maps(program: Program, call: Mapping[str, Any]) -> dict[str, Tensor]:
    """The attention of every block of a dense Program on one forward call's arguments.

    Returns:
        By block path: [frames, frames] float32, the share of its attention that a query of frame
        i gives to all keys of frame j, averaged over batch, heads and queries; what goes to text
        is left out.  Blocks with no self-attention across frames are left out.
    """
    maps = _Maps(program)
    with torch.no_grad():
        maps.run(*program.values(call))
    return maps.found


class _Maps(fx.Interpreter):
    """Run a Program and reduce the queries and keys of every block."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.blocks = {block.call: block for block in program.blocks}
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter.run_node`."""
        if n not in self.blocks:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        body = self.blocks[n].body
        for attention in self_attentions(body.graph):
            read = plain_attention(attention)
            axis = None if isinstance(read, str) else axes_of(read.query)[-2]
            if not isinstance(read, str) and axis is not None:
                values = _record(body, args, {read.query, read.key, read.mask} - {None})
                self.found[self.blocks[n].path] = _reduced(read, values, axis)
        return body(*args)


def _record(
    body: fx.GraphModule, args: tuple[Any, ...], nodes: Collection[fx.Node | None]
) -> dict[fx.Node, Tensor]:
    """Run a block and keep some of its values."""
    kept: dict[fx.Node, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                kept[n] = value
            return value

    Recorder(body).run(*args)
    return kept


def _reduced(read: PlainAttention, values: Mapping[fx.Node, Tensor], axis: FrameAxis) -> Tensor:
    """Average softmax weights over batch, heads and the tokens of each pair of frames."""
    query, key = values[read.query].float(), values[read.key].float()
    key = key if read.key_columns else key.transpose(-1, -2)
    if query.ndim > 2 and key.shape[-3] < query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    mask = query.new_zeros(1, 1) if read.mask is None else values[read.mask]
    mask = mask.expand(*query.shape[:-2], *mask.shape[-2:])
    heads = [x.reshape(-1, *x.shape[-2:]) for x in (query, key, mask)]
    scale = query.shape[-1] ** -0.5 if read.scale is None else read.scale
    edges = bounds(axis, query.device)
    group = torch.arange(len(edges) - 1, device=query.device).repeat_interleave(edges.diff())
    total = query.new_zeros(axis.frames, len(edges) - 1)
    for q, k, m in zip(*heads, strict=True):
        for frame in range(axis.frames):
            rows = slice(start := axis.before + frame * axis.inner, start + axis.inner)
            share = _weights(q[rows] @ k * scale, m if m.shape[0] == 1 else m[rows])
            total[frame].index_add_(0, group, share.mean(0))
    first = int(axis.before > 0)
    return (total[:, first : first + axis.frames] / heads[0].shape[0]).cpu()


def _weights(scores: Tensor, mask: Tensor) -> Tensor:
    seen = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return seen.softmax(-1)
