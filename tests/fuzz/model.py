"""Random video transformers around random blocks, and inputs for them."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.block import Block
from tests.fuzz.form import Form
from tests.fuzz.parts import HEAD, table

CHANNELS = 3
WORDS = 10
"""Features of the text."""
ROOM = 200
"""Tokens for which there are learned positions, and places in a cache."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: frames, rows and columns in tokens, batch items, text tokens."""

    frames: int
    height: int
    width: int
    batch: int
    text: int

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


class Stage(nn.Module):
    """Something that only holds the blocks."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks


class Model(nn.Module):
    """A video transformer of some form: takes the video, the time, text and its mask."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        width = form.heads * HEAD
        cells = form.patch**2 * (1 if form.time_patch == "one" else 2)
        self.embed = nn.Linear(CHANNELS * cells, width)
        self.unembed = nn.Linear(width, CHANNELS * cells)
        self.clock = nn.Sequential(nn.Linear(4, width), nn.SiLU())
        if form.modulation == "table":
            self.spread = nn.Linear(width, (6 if form.gates else 4) * width)
        if form.text != "none":
            self.words = nn.Linear(WORDS, width)
        if form.learned:
            self.places = nn.Parameter(torch.randn(1, ROOM, width) / 4)
        blocks = nn.ModuleList(
            Block(form, form.kind(i), skip=form.skips and 2 * i >= form.layers)
            for i in range(form.layers)
        )
        if form.shared == "block":
            blocks[1] = blocks[0]
        elif form.shared == "norm":
            blocks[1].norms[0] = blocks[0].norms[0]
        if form.container == "dict":
            self.layers: Any = nn.ModuleDict(
                OrderedDict((f"b{i}", b) for i, b in enumerate(blocks))
            )
        else:
            self.layers = Stage(blocks) if form.container == "nested" else blocks

    @property
    def patterns(self) -> tuple[str, ...]:
        """Where the blocks are."""
        return ("layers.blocks.*",) if self.form.container == "nested" else ("layers.*",)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in the order in which they run."""
        if self.form.container == "dict":
            return list(self.layers.values())
        return list(self.layers.blocks if self.form.container == "nested" else self.layers)

    def forward(
        self,
        video: Tensor,
        time: Tensor,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        num_frames: int = 0,
        height: int = 0,
        width: int = 0,
        tokens: int = 0,
        rope: Any = None,
        hint: Tensor | None = None,
        cache: Any = None,
    ) -> Any:
        form = self.form
        size = self.sizes(video) if form.video != "tokens" else (num_frames, height, width)
        x = self.embed(self.patches(video, size, tokens))
        if form.learned:
            x = x + self.places[:, : x.shape[1]]
        emb = self.embedded(time)
        words = self.words(text) if text is not None else None
        length = 0
        if form.text in ("front", "behind") and words is not None:
            length = words.shape[1]
            x = torch.cat([words, x] if form.text == "front" else [x, words], dim=1)
            if form.modulation == "token":
                rows = emb.new_zeros(emb.shape[0], length, emb.shape[2])
                emb = torch.cat([rows, emb] if form.text == "front" else [emb, rows], dim=1)
            words = None
        if mask is not None:
            mask = self.masked(mask, x.shape[1], size)
        x = self.run(x, words, emb, rope, mask, size, length, hint, cache)
        if length:
            x = x[:, length:] if form.text == "front" else x[:, :-length]
        return self.returned(self.pixels(self.unembed(x), video, size))

    def sizes(self, video: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns in tokens, from the shape of the video."""
        frames, rows, columns = (2, 3, 4) if self.form.video == "latents" else (1, 3, 4)
        if self.form.numbers == "tensor":
            numbers = torch.tensor(video.shape)
            f, h, w = torch.stack([numbers[frames], numbers[rows], numbers[columns]]).tolist()
        else:
            f, h, w = video.shape[frames], video.shape[rows], video.shape[columns]
        if self.form.time_patch != "one":
            f = (f + 1) // 2
        return f, h // self.form.patch, w // self.form.patch

    def patches(self, video: Tensor, size: tuple[int, int, int], count: int) -> Tensor:
        """The tokens [B, N, C p p] of the video."""
        if self.form.video == "tokens":
            return video
        if self.form.video == "frames":
            video = video.transpose(1, 2)
        if self.form.time_patch == "causal":
            video = torch.cat([video[:, :, :1], video], dim=2)
        (f, h, w), p, t = size, self.form.patch, 1 if self.form.time_patch == "one" else 2
        split = video.reshape(video.shape[0], CHANNELS, f, t, h, p, w, p)
        tokens = split.permute(0, 2, 4, 6, 1, 3, 5, 7)
        if self.form.numbers == "given":
            return tokens.reshape(tokens.shape[0], count, -1)
        if self.form.numbers == "product":
            return tokens.reshape(tokens.shape[0], math.prod(tokens.shape[1:4]), -1)
        return tokens.flatten(4).flatten(1, 3)

    def pixels(self, x: Tensor, video: Tensor, size: tuple[int, int, int]) -> Tensor:
        """The inverse of `patches`."""
        if self.form.video == "tokens":
            return x
        (f, h, w), p, t = size, self.form.patch, 1 if self.form.time_patch == "one" else 2
        split = x.reshape(x.shape[0], f, h, w, CHANNELS, t, p, p)
        latents = split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, CHANNELS, f * t, h * p, w * p)
        if self.form.time_patch == "causal":
            latents = latents[:, :, 1:]
        return latents.transpose(1, 2) if self.form.video == "frames" else latents

    def embedded(self, time: Tensor) -> Tensor:
        """The time [B, ...] as features [B, ..., W]."""
        speeds = torch.tensor([1.0, 10.0], device=time.device, dtype=time.dtype)
        waves = time[..., None] * speeds
        emb = self.clock(torch.cat([waves.sin(), waves.cos()], dim=-1))
        if self.form.modulation == "table":
            return self.spread(emb).unflatten(-1, (-1, self.form.heads * HEAD))
        return emb

    def masked(self, mask: Tensor, tokens: int, size: tuple[int, int, int]) -> Tensor:
        """The mask of the text [B, T] as the blocks take it."""
        form = self.form
        if form.mask == "inside":
            return mask
        if form.joined:
            length = mask.shape[1]
            video = tokens - (0 if form.text == "streams" else length)
            ones = mask.new_ones(mask.shape[0], video)
            mask = torch.cat([mask, ones] if form.text == "front" else [ones, mask], dim=1)
        rows = mask[:, None, None]
        if form.mask == "pairs":
            if form.joined:
                return rows & mask[:, None, :, None] | torch.eye(
                    mask.shape[1], dtype=torch.bool, device=mask.device
                )
            return rows.expand(-1, -1, tokens, -1)
        if form.mask == "bias":
            return (1 - rows.to(self.embed.weight.dtype)) * -20.0
        return rows

    def run(
        self,
        x: Tensor,
        text: Any,
        emb: Tensor,
        rope: Any,
        mask: Any,
        size: tuple[int, int, int],
        length: int,
        hint: Any,
        cache: Any,
    ) -> Tensor:
        """All blocks on tokens [B, S, W]."""
        form, batch = self.form, x.shape[0]
        taken: list[Tensor] = []
        x = self.shaped(x, size)
        for i, block in enumerate(self.blocks):
            space = form.kind(i) == "space"
            if form.folded:
                x = x if i == 0 else self.turn(x, batch)
            given = {
                "x": x,
                "text": self.each(text, space, size),
                "emb": self.each(emb, space, size) if form.modulation != "none" else None,
                "rope": rope if rope is not None else self.rope(i, size, x),
                "mask": self.each(mask, space, size) if form.mask != "pairs" else mask,
                "size": size if self.sized(i) else None,
                "length": length,
                "skip": None,
                "hint": hint,
                "cache": cache[i] if cache is not None else None,
            }
            if form.folded and form.mask == "pairs" and mask is not None:
                rows = size[1] * size[2] if space else size[0]
                given["mask"] = self.each(mask[:, :, :rows], space, size)
            if form.skips:
                taken.append(x)
                if 2 * i >= form.layers:
                    given["skip"] = taken[form.layers - 1 - i]
            if form.passing == "names":
                result = block(**{n: v for n, v in given.items() if v is not None})
            else:
                result = block(*given.values())
            x, text, hint = self.parts(result, text, hint)
        if form.folded:
            x = x if form.kind(form.layers - 1) == "space" else self.turn(x, batch)
            return x.unflatten(0, (batch, -1)).flatten(1, 2)
        if form.hidden == "channels":
            return x.flatten(2).transpose(1, 2)
        return x.flatten(1, -2)

    def shaped(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Tokens as the first block takes them."""
        f, h, w = size
        if self.form.hidden == "frames":
            return x.unflatten(1, (f, h * w))
        if self.form.hidden == "folded":
            return x.unflatten(1, (f, h * w)).flatten(0, 1)
        if self.form.hidden == "grid":
            return x.unflatten(1, (f, h, w))
        if self.form.hidden == "channels":
            return x.unflatten(1, (f, h, w)).permute(0, 4, 1, 2, 3)
        return x

    def turn(self, x: Tensor, batch: int) -> Tensor:
        """From [B F, P, W] to [B P, F, W] or back."""
        return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)

    def each(self, value: Any, space: bool, size: tuple[int, int, int]) -> Any:
        """A value of every batch item for every frame or place, where those are rows."""
        if value is None or not self.form.folded:
            return value
        return value.repeat_interleave(size[0] if space else size[1] * size[2], dim=0)

    def rope(self, block: int, size: tuple[int, int, int], like: Tensor) -> Any:
        """Rotary tables for a block, where they are given."""
        if self.form.rotary == "none" or self.form.positions != "given":
            return None
        if self.form.folded:
            space = self.form.kind(block) == "space"
            size = (1, *size[1:]) if space else (size[0], 1, 1)
        return table(self.form.rotary, size, like)

    def sized(self, block: int) -> bool:
        """Whether a block is told the grid."""
        form = self.form
        inside = form.rotary != "none" and form.positions == "inside"
        refolds = not form.folded and form.kind(block) != "full"
        known = form.hidden in ("grid", "channels")
        return not known and (inside or refolds or form.convolution != "none")

    def parts(self, result: Any, text: Any, hint: Any) -> tuple[Tensor, Any, Any]:
        """The video, the text and the hint of a block's result."""
        if isinstance(result, dict):
            return result["x"], result.get("text", text), result.get("hint", hint)
        if isinstance(result, (tuple, list)):
            if len(result) == 1:
                return result[0], text, hint
            if self.form.hint == "none":
                return result[0], result[1], hint
            return result[0], text, result[1]
        return result, text, hint

    def returned(self, x: Tensor) -> Any:
        """The model's result."""
        return {"value": x, "tuple": (x,), "dict": {"video": x}}[self.form.output]


def sample(result: Any) -> Tensor:
    """The video in a model's result."""
    if isinstance(result, dict):
        return result["video"]
    return result[0] if isinstance(result, tuple) else result


def build(form: Form, seed: int, dtype: torch.dtype) -> Model:
    """A model of a form; its numbers follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(form).eval().requires_grad_(False).to(dtype)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += torch.randn_like(weight) / 8
    return model


def inputs(form: Form, shape: Shape, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of one forward call."""
    source = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=source, dtype=torch.float64).to(dtype)

    f, h, w = shape.grid
    high, wide = h * form.patch, w * form.patch
    long = {"one": f, "two": 2 * f, "causal": 2 * f - 1}[form.time_patch]
    sizes = {
        "latents": (CHANNELS, long, high, wide),
        "frames": (long, CHANNELS, high, wide),
        "tokens": (shape.tokens, CHANNELS),
    }
    every = shape.tokens + shape.text
    rows = {"frame": (f,), "token": (shape.tokens,), "all": (every,)}.get(form.modulation, ())
    given: dict[str, Any] = {
        "video": normal(shape.batch, *sizes[form.video]),
        "time": torch.rand(shape.batch, *rows, generator=source).to(dtype),
    }
    if form.text != "none":
        given["text"] = normal(shape.batch, shape.text, WORDS)
        if form.mask != "none":
            lengths = torch.randint(1, shape.text + 1, (shape.batch, 1), generator=source)
            given["mask"] = torch.arange(shape.text) < lengths
    if form.video == "tokens":
        given |= {"num_frames": f, "height": h, "width": w}
    if form.numbers == "given":
        given["tokens"] = shape.tokens
    width = form.heads * HEAD
    if form.hint != "none":
        given["hint"] = normal(shape.batch, shape.tokens, width)
    if form.cache:
        held = (shape.batch, ROOM, form.heads // form.shared_heads, HEAD)
        given["cache"] = [(normal(*held), normal(*held)) for _ in range(form.layers)]
    if form.positions == "input":
        given["rope"] = table(form.rotary, shape.grid, torch.zeros((), dtype=dtype))
    return given


def grid_of(form: Form) -> Any:
    """The token grid of any call's arguments."""

    def grid(given: Any) -> tuple[int, int, int]:
        if form.video == "tokens":
            return given["num_frames"], given["height"], given["width"]
        frames = 2 if form.video == "latents" else 1
        f, h, w = (given["video"].shape[d] for d in (frames, 3, 4))
        f = f if form.time_patch == "one" else (f + 1) // 2
        return f, h // form.patch, w // form.patch

    return grid
