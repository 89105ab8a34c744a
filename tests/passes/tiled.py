"""Tile-sparse attention as a plain loop: the model's own attentions under an explicit N x N mask.

Written from the method alone; it shares no code with the pass that it checks but the tables of
frames, which have tests of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fisopt.passes.tiling.masks import FrameMask
from fisopt.rewrite.axes import FrameAxis
from tests.passes.loop import Block
from tests.tiles import explicit


class Tiled:
    """Hooks that note which block runs, and the attention that takes the place of torch's."""

    def __init__(
        self, blocks: Sequence[Block], masks: Sequence[FrameMask | None], frames: int | None
    ) -> None:
        self.blocks = {b.module: (b, m) for b, m in zip(blocks, masks, strict=True)}
        self.current: tuple[Block, FrameMask | None] | None = None
        self.attended, self.text, self.frames = False, 0, frames
        self.applied: set[nn.Module] = set()
        self.attend = torch.nn.functional.scaled_dot_product_attention

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.current, self.attended = self.blocks[module], False
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        joined = self.current[0].text != "none"
        self.text = given["encoder_hidden_states"].shape[1] if joined else 0

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args, output
        self.current = None

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        block, mask = self.current or (None, None)
        cross = self.attended and self.text == 0
        self.attended = True
        if block is None or mask is None or cross or block.attention.dim != 2:
            return self.attend(query, key, value, attn_mask=attn_mask, **kwargs)
        inner = block.attention.inner
        frames = self.frames or (query.shape[2] - self.text) // inner
        text = query.shape[2] - frames * inner  # Mochi leaves padded text out, clip by clip
        ahead = text if block.text == "front" else block.ahead
        sides = (ahead, text - ahead)
        axis = FrameAxis(frames, 1, inner, *sides)
        kept = explicit(mask.table(axis.frames), axis, axis)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            kept = kept & attn_mask
        elif attn_mask is not None:
            kept = attn_mask.masked_fill(~kept, float("-inf"))
        self.applied.add(block.module)
        return self.attend(query, key, value, attn_mask=kept, **kwargs)


@contextmanager
def tiled(
    blocks: Sequence[Block], masks: Sequence[FrameMask | None], frames: int | None = None
) -> Iterator[Tiled]:
    """Inside, the self-attention of the blocks keeps only the tiles of their masks.

    Without a number of frames it is read from the queries, less all text.
    """
    loop = Tiled(blocks, masks, frames)
    handles = []
    for module in loop.blocks:
        handles.append(module.register_forward_pre_hook(loop.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(loop.leave))
    try:
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", loop.attention):
            yield loop
    finally:
        for handle in handles:
            handle.remove()
