"""Frame-interleaved sparsity as a plain loop: forward hooks on a diffusers model's own blocks.

Written from the method alone, in terms of what each family's blocks take; it shares no code
with the pass that it checks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Take = Callable[..., Tensor]
Argument = Callable[[Any, Take], Any]


@dataclass(frozen=True)
class Options:
    stride: int
    fill: str = "residual"
    kv: str = "anchors"
    scope: str = "block"
    blocks: str = ":"


@dataclass(frozen=True)
class Video:
    """Where the frames are in a dimension: ``before`` text, outer * F * inner, ``after`` text."""

    dim: int
    outer: int = 1
    inner: int = 1

    def rows(self, kept: Sequence[int], frames: int, before: int, after: int) -> Tensor:
        video = [
            before + (o * frames + f) * self.inner + i
            for o in range(self.outer)
            for f in kept
            for i in range(self.inner)
        ]
        end = before + self.outer * frames * self.inner
        return torch.tensor([*range(before), *video, *range(end, end + after)])


@dataclass(frozen=True)
class Block:
    """One block: where its frames are and which arguments carry them besides hidden_states.

    ``ahead``: entries of a history before the video, where text is behind or none.
    """

    module: nn.Module
    hidden: Video
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    attention: Video = Video(2)
    text: str = "none"
    keys_mix: bool = True
    ahead: int = 0


def pair(dim: int) -> Argument:
    return lambda tables, take: tuple(take(table, dim) for table in tables)


def per_token(dim: int, rank: int) -> Argument:
    """A modulation that carries tokens only if it has the rank for it."""
    return lambda value, take: take(value, dim) if value.ndim == rank else value


def nothing(value: Any, take: Take) -> Any:
    del take
    return value


def blocks_of(family: str, model: Any, tokens: int, batch: int) -> list[Block]:
    """The video blocks of a model in the order in which they run."""
    hidden, attention = Video(1, inner=tokens), Video(2, inner=tokens)

    def plain(modules: Any, text: str = "none", **arguments: Argument) -> list[Block]:
        return [Block(m, hidden, arguments, attention, text) for m in modules]

    if family == "wan":
        return plain(model.blocks, rotary_emb=pair(1), temb=per_token(1, 4))
    if family == "cogvideox":
        rotary = pair(0) if model.config.use_rotary_positional_embeddings else nothing
        return plain(model.transformer_blocks, "front", image_rotary_emb=rotary)
    if family == "hunyuan_video":

        def mask(value: Tensor, take: Take) -> Tensor:
            return take(value, 3, behind=True)

        double = plain(model.transformer_blocks, "behind", freqs_cis=pair(0), attention_mask=mask)
        single = plain(
            model.single_transformer_blocks,
            "behind",
            image_rotary_emb=pair(0),
            attention_mask=mask,
        )
        return double + single
    if family == "hunyuan_video15":
        return plain(model.transformer_blocks, "behind", freqs_cis=pair(0))
    if family == "mochi":
        return plain(model.transformer_blocks, "behind", image_rotary_emb=pair(0))
    if family == "ltx":
        return plain(model.transformer_blocks, image_rotary_emb=pair(1))
    if family == "allegro":
        return plain(
            model.transformer_blocks,
            image_rotary_emb=lambda tables, take: (
                tables[0],
                tuple(take(numbers, 1) for numbers in tables[1]),
            ),
        )
    if family == "latte":
        rows = Video(0, outer=batch)
        blocks = []
        for spatial, temporal in zip(
            model.transformer_blocks, model.temporal_transformer_blocks, strict=True
        ):
            each = {
                "encoder_hidden_states": lambda value, take: take(value, 0),
                "timestep": lambda value, take: take(value, 0),
            }
            blocks.append(Block(spatial, rows, each, rows, keys_mix=False))
            blocks.append(Block(temporal, Video(1), {}, Video(2)))
        return blocks
    raise AssertionError(family)


class Loop:
    """Hooks that make the blocks of a model frame-sparse."""

    def __init__(self, blocks: list[Block], frames: int, options: Options) -> None:
        self.frames, self.options = frames, options
        chosen = blocks[slice(*(int(end) if end else None for end in options.blocks.split(":")))]
        self.blocks = {b.module: (b, self.anchors(i)) for i, b in enumerate(chosen)}
        self.hidden: Tensor | None = None
        self.text = 0
        self.current: tuple[Block, list[int]] | None = None
        self.attended = False
        self.attend = torch.nn.functional.scaled_dot_product_attention

    def anchors(self, index: int) -> list[int]:
        n, last = self.options.stride, self.frames - 1
        return [f for f in range(self.frames) if f % n == index % n or f in (0, last)]

    def take(self, x: Tensor, video: Video, kept: list[int], before: int, after: int) -> Tensor:
        rows = video.rows(kept, self.frames, before, after).to(x.device)
        return x.index_select(video.dim, rows)

    def spread(self, x: Tensor | None, y: Tensor, video: Video, kept: list[int]) -> Tensor:
        """All frames from those kept, one by one."""
        shape = (video.outer, len(kept), video.inner)
        known = y.unflatten(video.dim, shape).unbind(video.dim + 1)
        if x is None:
            before = [torch.zeros_like(known[0])] * self.frames
        else:
            whole = x.unflatten(video.dim, (video.outer, self.frames, video.inner))
            before = list(whole.unbind(video.dim + 1))
        result = []
        for f in range(self.frames):
            if f in kept:
                result.append(known[kept.index(f)])
                continue
            a = max(k for k in kept if k < f)
            b = min(k for k in kept if k > f)
            w = (f - a) / (b - a)
            ya, yb = known[kept.index(a)], known[kept.index(b)]
            if self.options.fill == "carry":
                result.append(before[f])
            elif self.options.fill == "state":
                result.append((1 - w) * ya + w * yb)
            else:
                update = (1 - w) * (ya - before[a]) + w * (yb - before[b])
                result.append(before[f] + update)
        return torch.stack(result, video.dim + 1).flatten(video.dim, video.dim + 2)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        block, kept = self.blocks[module]
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        given = bound.arguments
        self.hidden = given["hidden_states"]
        text = given.get("encoder_hidden_states")
        self.text = 0 if block.text == "none" else text.shape[1]
        self.current, self.attended = (block, kept), False
        if self.options.scope == "block" and self.options.kv == "anchors":
            given["hidden_states"] = self.take(self.hidden, block.hidden, kept, 0, 0)

            def take(x: Tensor, dim: int, behind: bool = False) -> Tensor:
                video = Video(dim, block.hidden.outer, block.hidden.inner)
                return self.take(x, video, kept, 0, self.text if behind else 0)

            for name, gather in block.arguments.items():
                given[name] = gather(given[name], take)
        return bound.args, bound.kwargs

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        del args, kwargs
        block, kept = self.blocks[module]
        self.current = None
        if self.options.scope == "attention":
            return output
        video, *rest = output if isinstance(output, tuple) else (output,)
        if self.options.kv == "all":
            video = self.take(video, block.hidden, kept, 0, 0)
        video = self.spread(self.hidden, video, block.hidden, kept)
        return (video, *rest) if isinstance(output, tuple) else video

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        """Attention of the current block: the first, or every one where text is joined."""
        if self.current is None or (self.attended and self.current[0].text == "none"):
            return self.attend(query, key, value, attn_mask=attn_mask, **kwargs)
        block, kept = self.current
        self.attended = True
        video = block.attention
        total = self.frames * video.outer * video.inner
        text = query.shape[video.dim] - total
        before, after = (text, 0) if block.text == "front" else (0, text)

        def take(x: Tensor, dim: int) -> Tensor:
            where = Video(dim, video.outer, video.inner)
            return self.take(x, where, kept, before, after)

        rows, mask = query.shape[-2], attn_mask
        query = take(query, video.dim)
        if mask is not None and mask.shape[-2] == rows:
            mask = take(mask, mask.ndim - 2)
        if self.options.kv == "anchors" or not block.keys_mix:
            key, value = take(key, video.dim), take(value, video.dim)
            if mask is not None and mask.shape[-1] == rows:
                mask = take(mask, mask.ndim - 1)
        result = self.attend(query, key, value, attn_mask=mask, **kwargs)
        size = result.shape[video.dim]
        middle = result.narrow(video.dim, before, size - before - after)
        middle = self.spread(None, middle, video, kept)
        head = result.narrow(video.dim, 0, before)
        tail = result.narrow(video.dim, size - after, after)
        return torch.cat([head, middle, tail], video.dim)


@contextmanager
def interleaved(blocks: list[Block], options: Options, frames: int) -> Iterator[None]:
    """Inside, the blocks are frame-sparse."""
    if frames <= 2:
        yield
        return
    loop = Loop(blocks, frames, options)
    handles = []
    for module in loop.blocks:
        handles.append(module.register_forward_pre_hook(loop.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(loop.leave, with_kwargs=True))
    attend = loop.attention if options.scope == "attention" else loop.attend
    try:
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
            yield
    finally:
        for handle in handles:
            handle.remove()
