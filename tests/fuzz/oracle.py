"""What the passes must compute, on a copy of the model: its own blocks and its own attention.

Blocks run on some frames of their arguments and the others are filled in, attention runs under a
table of all pairs or on fewer tokens.  Nothing here knows of graphs, and only the choice of
destinations and the masks over frames, which have tests of their own, are those of the passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fisopt import FrameInterleave, Pass, TileAttention, TokenReduction
from fisopt.rewrite.axes import FrameAxis
from tests.fuzz.block import Block
from tests.fuzz.form import Form
from tests.fuzz.model import ROOM, Model, Shape, sample
from tests.fuzz.parts import PAST, attend
from tests.passes.dense_reduction import Attend, Options
from tests.tiles import explicit

Grid = tuple[int, int, int]
BRANCHES = ("self_attention", "cross_attention", "feed_forward")


@dataclass(frozen=True)
class Place:
    """Where frames are in a tensor: ``before + outer * F * inner + after`` entries of ``dim``."""

    dim: int
    outer: int = 1
    inner: int = 1
    before: int = 0
    after: int = 0

    def rows(self, kept: Sequence[int], frames: int) -> Tensor:
        """The entries of some frames, and all that are of no frame."""
        video = self.before + torch.arange(self.outer * frames * self.inner)
        grid = video.reshape(self.outer, frames, self.inner)[:, list(kept)]
        end = self.before + self.outer * frames * self.inner
        return torch.cat(
            [torch.arange(self.before), grid.flatten(), end + torch.arange(self.after)]
        )

    def take(self, x: Tensor, kept: Sequence[int], frames: int) -> Tensor:
        """Some frames of a tensor."""
        return x.index_select(self.dim, self.rows(kept, frames))

    def parts(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """What is before, each frame, and what is behind."""
        video = x.shape[self.dim] - self.before - self.after
        first, middle, last = x.split([self.before, video, self.after], self.dim)
        framed = middle.unflatten(self.dim, (self.outer, -1, self.inner))
        return first, list(framed.unbind(self.dim + 1)), last

    def joined(self, first: Tensor, frames: Sequence[Tensor], last: Tensor) -> Tensor:
        """The inverse of `parts`."""
        middle = torch.stack(list(frames), self.dim + 1).flatten(self.dim, self.dim + 2)
        return torch.cat([first, middle, last], self.dim)

    def spread(
        self, x: Tensor | None, y: Tensor, kept: list[int], frames: int, fill: str
    ) -> Tensor:
        """All frames from those kept: y holds them, x what all frames were before, if known."""
        first, known, last = self.parts(y)
        before = self.parts(x)[1] if x is not None else [torch.zeros_like(known[0])] * frames
        filled = []
        for f in range(frames):
            if f in kept:
                filled.append(known[kept.index(f)])
                continue
            a, b = max(k for k in kept if k < f), min(k for k in kept if k > f)
            w = (f - a) / (b - a)
            ya, yb = known[kept.index(a)], known[kept.index(b)]
            if fill == "carry":
                filled.append(before[f])
            elif fill == "state" or x is None:
                filled.append((1 - w) * ya + w * yb)
            else:
                filled.append(before[f] + (1 - w) * (ya - before[a]) + w * (yb - before[b]))
        return self.joined(first, filled, last)


def tokens_of(form: Form, kind: str, shape: Shape) -> Place:
    """Where the frames are in the tokens that run through a block."""
    if form.folded:
        return Place(1) if kind == "time" else Place(0, outer=shape.batch)
    front, behind = (shape.text if form.text == where else 0 for where in ("front", "behind"))
    return Place(1, 1, shape.height * shape.width, front, behind)


def places(form: Form, kind: str, shape: Shape) -> dict[str, tuple[Place, ...]]:
    """Where the frames are in the arguments of a block; arguments without are left out."""
    inner = shape.height * shape.width
    front = shape.text if form.text == "front" else 0
    if form.folded:
        if kind == "time":
            found = {"x": (Place(1),), "rope": (Place(0),)}
            return found | ({"mask": (Place(2),)} if form.mask == "pairs" else {})
        rows = (Place(0, outer=shape.batch),)
        return dict.fromkeys(("x", "text", "emb", "mask"), rows)
    x = {"grid": Place(1), "frames": Place(1), "channels": Place(2)}.get(form.hidden)
    tokens = tokens_of(form, kind, shape)
    found = {"x": (x or tokens,), "skip": (x or tokens,), "rope": (Place(0, 1, inner),)}
    if form.modulation in ("frame", "token", "all"):
        found["emb"] = (Place(1) if form.modulation == "frame" else tokens,)
    found["hint"] = (tokens,)
    found["cache"] = (Place(1, 1, inner, PAST, ROOM - PAST - shape.tokens),)
    if form.joined and form.mask not in ("none", "inside"):
        after = shape.text - front
        dims = (2, 3) if form.mask == "pairs" else (3,)
        found["mask"] = tuple(Place(d, 1, inner, front, after) for d in dims)
    elif form.mask == "pairs":
        found["mask"] = (Place(2, 1, inner),)
    return found


@dataclass
class Seen:
    """What the attention of one block sees: which of its operands' frames, and how many."""

    place: Place
    keys: Place
    mixes: bool
    frames: int
    grid: Grid


class Oracle:
    """A model whose blocks and attentions do as some passes say, for calls of one shape."""

    def __init__(self, model: Model, shape: Shape, passes: Sequence[Pass]) -> None:
        self.model, self.form, self.shape = copy.deepcopy(model), model.form, shape
        self.interleave = next((p for p in passes if isinstance(p, FrameInterleave)), None)
        self.tiles = next((p for p in passes if isinstance(p, TileAttention)), None)
        self.reduction = next((p for p in passes if isinstance(p, TokenReduction)), None)
        self.count = 0
        if shape.frames <= 2:
            self.interleave = None
        if shape.frames == 2:
            self.reduction = None

    def __call__(self, given: dict[str, Any]) -> Tensor:
        """The video that comes out."""
        self.count = 0
        for block in set(self.model.blocks):
            block.form = replace(block.form, loops=False)  # the same, all frames at once
            self.wrap(block)
        with torch.no_grad():
            return sample(self.model(**given))

    def wrap(self, block: Block) -> None:
        """Put the oracle's own forward and attention into a block."""
        names = (
            "x", "text", "emb", "rope", "mask", "size", "length", "skip", "hint", "cache"
        )  # fmt: skip
        forward, made = block.forward, block.tables
        adds = {"add": block.add, "crossed": block.crossed}

        def run(*args: Any, **kwargs: Any) -> Any:
            index, self.count = self.count, self.count + 1
            given = dict(zip(names, args, strict=False)) | kwargs
            each = {branch: self.kept(index, branch) for branch in BRANCHES}
            kept, apart = each["self_attention"], len(self.strides(index)) > 1
            inner = self.interleave is not None and self.interleave.scope == "attention"
            block.attention.core = self.core(block, index, kept, apart)
            block.add, block.crossed = adds["add"], adds["crossed"]
            if apart:
                self.add_apart(block, each)
            if kept is None or inner or apart:
                return forward(**given)
            return self.sparse(block, index, forward, made, given, kept)

        block.forward = run

    def stride(self, index: int, branch: str) -> int:
        """Of a branch of a block."""
        named = getattr(self.interleave, branch)
        if named is None:
            named = self.interleave.stride if self.interleave is not None else 1
        return int(named[index]) if isinstance(named, tuple) else int(named)

    def strides(self, index: int) -> set[int]:
        """Those of all branches of a block."""
        if self.interleave is None or index not in self.chosen():
            return {1}
        return {self.stride(index, branch) for branch in BRANCHES}

    def chosen(self) -> range:
        """The blocks that may be sparse."""
        assert self.interleave is not None
        return range(self.form.layers)[slice_of(self.interleave.blocks)]

    def kept(self, index: int, branch: str) -> list[int] | None:
        """The frames on which a branch of a block is computed, None if that is every one."""
        if self.interleave is None or index not in self.chosen():
            return None
        n, frames = self.stride(index, branch), self.shape.frames
        residue = self.chosen().index(index) % n
        kept = [f for f in range(frames) if f % n == residue or f in (0, frames - 1)]
        return kept if len(kept) < frames else None

    def add_apart(self, block: Block, each: dict[str, list[int] | None]) -> None:
        """Have what each branch of a block adds interpolated between its own frames."""
        adds, crossed, frames = block.add, block.crossed, self.shape.frames
        place, own = tokens_of(self.form, block.kind, self.shape), self.interleave
        assert own is not None

        def spread(kept: list[int] | None, made: Any, h: Tensor, *rest: Any) -> Tensor:
            if kept is None:
                return made(h, *rest)  # type: ignore[no-any-return]
            after = place.take(made(h.clone(), *rest), kept, frames)
            return place.spread(h, after, kept, frames, own.fill)

        def add(h: Tensor, y: Tensor, gate: Tensor | None, branch: int) -> Tensor:
            kept = each["feed_forward" if branch else "self_attention"]
            whole = spread(kept, adds, h, y, gate, branch)
            return h.copy_(whole) if self.form.writes == "stream" else whole

        block.add = add
        block.crossed = lambda *given: spread(each["cross_attention"], crossed, *given)

    def sparse(
        self,
        block: Block,
        index: int,
        forward: Callable[..., Any],
        made: Any,
        given: Any,
        kept: list[int],
    ) -> Any:
        """A block on some frames, the others filled in."""
        assert self.interleave is not None
        frames, whole = self.shape.frames, given["x"]
        given = given | {"x": whole.clone()}  # the block may write into it, before it adds more
        found = places(self.form, block.kind, self.shape)
        if self.exact(index):
            result = forward(**given)
            cut, written = (
                found["x"][0].take(t, kept, frames) for t in (self.video(result), given["x"])
            )
        else:
            few = dict(given)
            for name, dims in found.items():
                for place in dims if few.get(name) is not None else ():
                    few[name] = taken(few[name], place, kept, frames)
            if given.get("size") is not None:
                few["size"] = (len(kept), *given["size"][1:])
            with_tables = self.tables(block, made, kept)
            block.tables = with_tables
            result = forward(**few)
            block.tables = made
            if given.get("cache") is not None:
                forward(**given)  # what is written is of every frame
            cut, written = self.video(result), few["x"]
        fill = self.interleave.fill
        added = self.added(given)
        place = found["x"][0]
        video = place.spread(whole, cut, kept, frames, fill if added else "state")
        if self.form.hint != "none":
            hint, before = self.model.parts(result, None, None)[2], given["hint"]
            if self.exact(index):
                hint = place.take(hint, kept, frames)
            added = self.form.hint == "added"
            hint = place.spread(before, hint, kept, frames, fill if added else "state")
            result = self.with_hint(result, hint)
        own = given.get("skip") is None and given.get("hint") is None
        if self.form.writes == "stream" and own:
            after = place.spread(whole, written, kept, frames, fill)
            video = whole if torch.equal(after, video) else video
            whole.copy_(after)
        return self.with_video(result, video)

    def exact(self, index: int) -> bool:
        """Whether the kept frames are what they are in the dense block."""
        assert self.interleave is not None
        kv = self.interleave.kv
        return (kv if isinstance(kv, str) else kv[index]) == "all"

    def added(self, given: Any) -> bool:
        """Whether a block adds to what it is given, or to a norm of that, and does no more."""
        normed = self.form.place != "post" or self.form.norm != "written"
        return normed and given.get("skip") is None

    def video(self, result: Any) -> Tensor:
        return self.model.parts(result, None, None)[0]

    def with_hint(self, result: Any, hint: Tensor) -> Any:
        """A block's result with another hint in it."""
        if isinstance(result, dict):
            return result | {"hint": hint}
        return type(result)([result[0], hint])

    def with_video(self, result: Any, video: Tensor) -> Any:
        """A block's result with another video in it."""
        if isinstance(result, dict):
            return result | {"x": video}
        if isinstance(result, (tuple, list)):
            return type(result)([video, *result[1:]])
        return video

    def tables(self, block: Block, made: Any, kept: list[int]) -> Any:
        """Rotary tables that a block makes itself: those of the frames' places in the clip."""
        frames, inner = self.shape.frames, self.shape.height * self.shape.width

        def tables(size: Grid, like: Tensor) -> Any:
            whole = made((frames, *size[1:]), like)
            if self.form.folded and block.kind == "space":
                return whole
            return taken(whole, Place(0, 1, 1 if self.form.folded else inner), kept, frames)

        return tables

    # attention

    def seen(self, block: Block, frames: int) -> Seen:
        """What a block's self-attention runs over, for some number of frames."""
        form, s = self.form, self.shape
        if block.kind == "time":
            return Seen(Place(2), Place(2), True, frames, (frames, 1, 1))
        if form.folded or block.kind == "space":
            rows = Place(0, outer=s.batch)
            return Seen(rows, rows, False, frames, (1, s.height, s.width))
        if block.kind == "rows":
            rows = Place(0, s.batch, s.height)
            return Seen(rows, rows, False, frames, (1, 1, s.width))
        front = s.text if form.text == "front" else 0
        after = s.text - front if form.joined else 0
        place = Place(2, 1, s.height * s.width, front, after)
        keys = replace(place, before=PAST) if form.cache else place
        return Seen(place, keys, True, frames, (frames, s.height, s.width))

    def core(self, block: Block, index: int, kept: list[int] | None, apart: bool) -> Any:
        """The self-attention of one block, whose branches may be computed on other frames each."""
        own, frames = self.interleave, self.shape.frames
        few = kept or list(range(frames))

        def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            given = (q, k, v, mask)
            if own is None or kept is None:
                return self.inner(block, index, frames, frames, *given)
            if own.scope == "block" and not apart and not self.exact(index):
                return self.inner(block, index, len(few), len(few), *given)
            if own.scope == "block" and not apart and self.read_whole():
                return self.inner(block, index, frames, frames, *given)
            seen = self.seen(block, frames)
            narrow = not self.exact(index) or not seen.mixes
            q = seen.place.take(q, few, frames)
            if narrow:
                k, v = (seen.keys.take(t, few, frames) for t in (k, v))
            if mask is not None and seen.mixes:
                mask = self.masked(mask, seen.place, few, narrow)
            n = len(few)
            z = self.inner(block, index, n, n if narrow else frames, q, k, v, mask)
            if own.scope == "attention":
                return seen.place.spread(None, z, few, frames, own.fill)
            first, known, last = seen.place.parts(z)
            unused = torch.full_like(known[0], torch.nan)
            all_frames = [known[few.index(f)] if f in few else unused for f in range(frames)]
            return seen.place.joined(first, all_frames, last)

        return core

    def read_whole(self) -> bool:
        """Whether something in a block behind the attention reads every frame of it."""
        return self.form.convolution == "time" or self.form.text == "tuned"

    def masked(self, mask: Tensor, place: Place, few: list[int], narrow: bool) -> Tensor:
        """A mask [B, 1, 1 or S, S] of some frames' queries, and keys."""
        frames = self.shape.frames
        for dim, wanted in ((2, True), (3, narrow)):
            if wanted and mask.shape[dim] > 1:
                here = Place(dim, 1, place.inner, place.before, place.after)
                mask = here.take(mask, few, frames)
        return mask

    def inner(
        self, block: Block, index: int, queries: int, keys: int, q: Any, k: Any, v: Any, mask: Any
    ) -> Tensor:
        """Attention of some frames to some, on kept tiles or fewer tokens."""
        if self.reduction is not None and (self.reduction.query or self.reduction.value):
            grids = (self.seen(block, queries), self.seen(block, keys))
            return reduced(self.reduction, index, grids, q, k, v, mask)
        tiles = self.tile_mask(index)
        if tiles is not None and bool(tiles.table(self.shape.frames).all()):
            tiles = None
        if tiles is not None and self.seen(block, queries).mixes:
            if queries != keys:
                return torch.full_like(q, torch.nan)  # no such mask: the pass must refuse it
            seen = self.seen(block, queries)
            rows, columns = (
                FrameAxis(queries, 1, place.inner, place.before, place.after)
                for place in (seen.place, seen.keys)
            )
            kept = explicit(tiles.table(queries), rows, columns)
            if mask is None:
                mask = kept
            elif mask.dtype == torch.bool:
                mask = mask & kept
            else:
                mask = mask.masked_fill(~kept, -torch.inf)
        return attend(self.form.attention, q, k, v, mask)

    def tile_mask(self, index: int) -> Any:
        """The mask of a block, None if its attention stays dense."""
        if self.tiles is None:
            return None
        chosen = range(self.form.layers)[slice_of(self.tiles.blocks)]
        return self.tiles.mask if index in chosen else None


def slice_of(blocks: Any) -> slice:
    """The slice that a text such as "1:" stands for."""
    return slice(*(int(bound) if bound else None for bound in blocks.split(":")))


def taken(value: Any, place: Place, kept: Sequence[int], frames: int) -> Any:
    """Some frames of a tensor, or of each of several."""
    if isinstance(value, tuple):
        return tuple(taken(each, place, kept, frames) for each in value)
    return place.take(value, kept, frames)


def reduced(
    reduction: TokenReduction,
    index: int,
    grids: tuple[Seen, Seen],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Attention on fewer tokens, row by row and head by head."""
    options = Options(
        reduction.query, reduction.value, reduction.destination_stride, reduction.mode,
        reduction.seed, search=reduction.search,
    )  # fmt: skip
    places = (grids[0].place, grids[1].keys)
    queries, values = (
        Attend(options, lambda _: (0, 0, 0), front=p.before > 0, block=index) for p in places
    )
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    if mask is None:
        mask = torch.zeros((), dtype=q.dtype)
    elif mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    mask = mask.expand(*q.shape[:-1], k.shape[-2])
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    cells = [seen_cells(seen, reduction.destination_stride) for seen in grids]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            row = b * q.shape[1] + h
            few = queries.choose(q[b, h], grids[0].grid, cells[0], "query", row)
            kept = values.choose(v[b, h], grids[1].grid, cells[1], "value", row)
            seen = kept.stay(few.stay(mask[b, h], 0), 1)
            own = few.reduce(q[b, h], reduction.mode)
            others = (kept.reduce(t[b, h], reduction.mode) for t in (k, v))
            key, value = others
            scores = own @ key.T * q.shape[-1] ** -0.5 + seen
            out[b, h] = few.restore(scores.softmax(-1) @ value)
    return out


def seen_cells(seen: Seen, stride: Grid) -> Grid:
    """The cells of what an attention sees: no larger than the grid along what it does not see."""
    frames, rows, columns = stride
    if seen.grid == (1, 1, 1):
        return seen.grid
    if seen.mixes and seen.frames > 1:
        return stride if seen.place.inner > 1 or seen.grid[1:] != (1, 1) else (frames, 1, 1)
    return (1, rows, columns)
