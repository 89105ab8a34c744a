"""Token reduction written out: a model's own forward with loops in the place of its attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fisopt.rewrite.partition import destinations_in_cells
from fisopt.rewrite.tracing.block_paths import matches

Grid = tuple[int, int, int]
Ratio = float | tuple[float, ...]


@dataclass(frozen=True)
class Options:
    """The options of TokenReduction that matter to one step."""

    query: Ratio = 0.5
    value: Ratio = 0.3
    destination_stride: Grid = (2, 2, 2)
    mode: str = "replace"
    seed: int = 0
    draw: int = 0
    search: str = "all"


def share(ratio: Ratio, block: int) -> float:
    return ratio[block] if isinstance(ratio, tuple) else ratio


def left_of(tokens: int, ratio: float) -> int:
    """Tokens that a share leaves: ``int(tokens * (1 - ratio))`` in doubles, as the authors have it.

    Each of the two operations is exact, then rounded once, which is what a double does.
    """
    left = float(1 - Fraction(ratio))
    return math.trunc(float(tokens * Fraction(left)))


@dataclass(frozen=True)
class Chosen:
    """Groups of a sequence: the first of each stays and stands for the others."""

    groups: list[list[int]]
    size: int

    def reduce(self, x: Tensor, mode: str) -> Tensor:
        rows = [x[g].mean(0) if mode == "mean" else x[g[0]] for g in self.groups]
        return torch.stack(rows)

    def stay(self, x: Tensor, dim: int) -> Tensor:
        return torch.stack([x.select(dim, g[0]) for g in self.groups], dim)

    def restore(self, y: Tensor) -> Tensor:
        rows = {entry: y[i] for i, g in enumerate(self.groups) for entry in g}
        return torch.stack([rows[entry] for entry in range(self.size)])


@dataclass
class Attend:
    """An attention that reduces, as a replacement of torch's own.

    Attributes:
        options: what to drop.
        grid: the token grid that a block sees.
        front: whether text comes before the tokens.
        ahead: entries of a history before them.
        block: the block that is running.
        seen: how many attentions were reduced.
        groups: what was matched, by block, feature and row, kept for steps that reuse it.
    """

    options: Options
    grid: Callable[[int], Grid]
    front: bool
    real: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention
    block: int = -1
    seen: int = 0
    groups: dict[tuple[int, str, int], list[list[int]]] | None = None
    ahead: int = 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kw: Any
    ) -> Tensor:
        size = query.shape[-2]
        grid, stride = self.view(size) if self.block >= 0 else (None, (0, 0, 0))
        if grid is None or size != key.shape[-2]:
            return self.real(query, key, value, attn_mask=attn_mask, **kw)
        self.seen += 1
        mask = torch.zeros(())
        if attn_mask is not None:
            mask = attn_mask.float()
            if attn_mask.dtype == torch.bool:
                mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
        mask = mask.expand(*query.shape[:-1], size)
        scale = kw.get("scale") or query.shape[-1] ** -0.5
        out = torch.empty(*query.shape[:-1], value.shape[-1])
        for b in range(query.shape[0]):
            for h in range(query.shape[1]):
                q = self.choose(query[b, h], grid, stride, "query", b * query.shape[1] + h)
                v = self.choose(value[b, h], grid, stride, "value", b * query.shape[1] + h)
                few = v.stay(q.stay(mask[b, h], 0), 1)
                mode = self.options.mode
                k, own = v.reduce(key[b, h], mode), q.reduce(query[b, h], mode)
                weights = (own @ k.T * scale + few).softmax(-1).nan_to_num(0)  # sees nothing
                out[b, h] = q.restore(weights @ v.reduce(value[b, h], mode))
        return out

    def view(self, size: int) -> tuple[Grid | None, Grid]:
        """The grid that an attention over this many entries sees, and its cells."""
        frames, height, width = self.grid(self.block)
        sf, sh, sw = self.options.destination_stride
        if size == height * width:
            return (1, height, width), (1, sh, sw)
        if size == frames:
            return (frames, 1, 1), (sf, 1, 1)
        seen = (frames, height, width) if size >= math.prod((frames, height, width)) else None
        return seen, (sf, sh, sw)

    def choose(self, x: Tensor, grid: Grid, stride: Grid, feature: str, row: int) -> Chosen:
        """Match one sequence [S, D]: loops over its tokens, every distance."""
        size, tokens = len(x), math.prod(grid)
        ratio = share(getattr(self.options, feature), self.block)
        key = (self.options.seed, self.block, 0, feature)
        draw = (self.options.draw,) if self.options.draw else ()
        chosen, corner = destinations_in_cells(grid, stride, *key, *draw)
        keep = max(0, left_of(tokens, ratio) - len(chosen))
        whole = Chosen([[i] for i in range(size)], size)
        if not ratio or len(chosen) + keep >= tokens:
            return whole
        if self.groups is not None and (self.block, feature, row) in self.groups:
            return Chosen(self.groups[self.block, feature, row], size)
        start = size - tokens if self.front else self.ahead
        stay = [start + int(d) for d in chosen]
        sources = [i for i in range(start, start + tokens) if i not in set(stay)]
        distance = (x[sources].double()[:, None] - x[stay].double()[None]).square().sum(-1)
        if self.options.search == "near":
            cells = [cell_of(i, grid, stride, corner.tolist()) for i in range(tokens)]
            for i, source in enumerate(sources):
                for j, place in enumerate(stay):
                    pair = zip(cells[source - start], cells[place - start], strict=True)
                    if any(abs(a - b) > 1 for a, b in pair):
                        distance[i, j] = math.inf
        nearest = {s: stay[int(distance[i].argmin())] for i, s in enumerate(sources)}
        ranked = sorted(sources, key=lambda s: -float(distance[sources.index(s)].min()))
        dropped = ranked[keep:]
        groups = [
            [i, *(s for s in dropped if nearest[s] == i)] for i in range(size) if i not in dropped
        ]
        if self.groups is not None:
            self.groups[self.block, feature, row] = groups
        return Chosen(groups, size)


def cell_of(token: int, grid: Grid, stride: Grid, corner: list[int]) -> list[int]:
    """Frame, row and column of the cell of a token; the rim belongs to the nearest."""
    place = []
    for size, step, start in reversed([*zip(grid, stride, corner, strict=True)]):
        token, here = divmod(token, size)
        place.append(min(max((here - start) // step, 0), size // step - 1))
    return place[::-1]


@contextmanager
def reduced(model: nn.Module, blocks: tuple[str, ...], attend: Attend) -> Iterator[None]:
    """Run a model's blocks with the attention in the place of torch's own."""
    count = 0

    def enter(*_: object) -> None:
        nonlocal count
        attend.block, count = count, count + 1

    def leave(*_: object) -> None:
        attend.block = -1

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if matches(name, blocks):
                for handle in (
                    module.register_forward_pre_hook(enter),
                    module.register_forward_hook(leave),
                ):
                    stack.callback(handle.remove)
        stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", attend))
        yield
