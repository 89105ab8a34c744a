"""Which input dimensions carry frames: what sizes suggest, likeliest first, and inputs resized."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.inputs import Inputs

INT = -1
"""The "dimension" of a plain int."""


@dataclass(frozen=True)
class Growth:
    """A dimension that is longer for every latent frame more.

    Attributes:
        dim: the dimension; -1 for the value of a plain int.
        per_frame: entries that a frame adds.
        tokens: count them in tokens of a frame, so that they follow the resolution.
        exact: the dimension holds frames alone: its size is a multiple of their number.
        plane: the dimensions of rows and columns behind it, where there are; of an image, whose
            rows are in the place of frames, ``dim`` is that of the rows.
        scale: their entries for a token.
        padded: the number is a length to which the model pads its tokens.
    """

    dim: int
    per_frame: int
    tokens: bool = False
    exact: bool = True
    plane: tuple[int, int] | None = None
    scale: int = 1
    padded: bool = False

    def step(self, grid: TokenLayout) -> int:
        """Entries that a frame adds on a token grid."""
        return self.per_frame * (grid.tokens_per_frame if self.tokens else 1)

    def more(self, grid: TokenLayout, other: TokenLayout) -> int:
        """Entries that another token grid has more."""
        added = other.tokens - grid.tokens if self.tokens else other.frames - grid.frames
        return self.per_frame * added


FrameDims = dict[int, tuple[Growth, ...]]
"""Leaf index -> the dimensions of the leaf that grow with frames."""

Way = tuple[int, tuple[Growth, ...]]
"""How unlikely it is that a leaf grows like this (0: as likely as can be), and how it grows."""


def size_of(leaf: torch.Tensor | int, growth: Growth) -> int:
    """The size that a growth speaks of."""
    return leaf.shape[growth.dim] if isinstance(leaf, torch.Tensor) else leaf


def resize(inputs: Inputs, dims: FrameDims, grid: TokenLayout, other: TokenLayout) -> Inputs:
    """Return inputs of the same form for another token grid; values are zeros."""
    leaves = list(inputs.leaves)
    for i, growths in dims.items():
        leaf = leaves[i]
        if not isinstance(leaf, torch.Tensor):
            leaves[i] = leaf + growths[0].more(grid, other)
            continue
        sizes = list(leaf.shape)
        for growth in growths:
            sizes[growth.dim] = max(sizes[growth.dim] + growth.more(grid, other), 0)
            if growth.plane is not None:
                by = (other.height - grid.height, other.width - grid.width)
                for d, rows in zip(growth.plane, by, strict=True):
                    sizes[d] += growth.scale * rows
        leaves[i] = leaf.new_zeros(sizes)
    return inputs.replaced(leaves)


def fits(inputs: Inputs, dims: FrameDims, grid: TokenLayout) -> bool:
    """Whether the sizes of inputs are those of a grid, as far as dimensions hold frames alone."""
    return all(
        size_of(inputs.leaves[i], growth) == grid.frames * growth.step(grid)
        for i, growths in dims.items()
        for growth in growths
        if growth.exact
    )


def candidates(
    inputs: Inputs, grid: TokenLayout, returned: Collection[int] = ()
) -> Iterator[FrameDims]:
    """Yield assignments of frames to input dimensions, the likeliest first.

    Args:
        inputs: of one call.
        grid: their token grid.
        returned: sizes that blocks return.

    Some tensor carries the grid: it has F entries, or a multiple, followed by its rows and
    columns, or one entry a token, or the tokens of the video joined to those of another input.
    Where one does, other inputs may follow: a dimension of F entries, an int equal to F, to the
    number of tokens or to the longer sequence that blocks return, to which the model pads them
    (``seq_len`` of Wan's own code), video before it was compressed in time.  The first dimension
    of the tensor that carries the grid is its batch, and batch is not frames.
    """
    known = _Known.of(inputs, grid, returned)
    index = [i for i, leaf in enumerate(inputs.leaves) if _is_sized(leaf)]
    ways = [_ways(inputs.leaves[i], grid, known) for i in index]
    for choice in _cheapest(ways):
        dims = {
            i: options[c][1]
            for i, options, c in zip(index, ways, choice, strict=True)
            if options[c][1]
        }
        if any(_carries(inputs.leaves[i], growth, grid) for i, g in dims.items() for growth in g):
            yield dims


def all_grow(inputs: Inputs, grid: TokenLayout) -> FrameDims:
    """The assignment in which all that may grow does, each in its likeliest way."""
    known = _Known.of(inputs, grid)
    ways = {i: _ways(x, grid, known) for i, x in enumerate(inputs.leaves) if _is_sized(x)}
    growths = ((i, [g for _, g in options if g]) for i, options in ways.items())
    return {i: found[0] for i, found in growths if found}


def _is_sized(leaf: object) -> bool:
    return isinstance(leaf, (torch.Tensor, int)) and not isinstance(leaf, bool)


def _carries(leaf: object, growth: Growth, grid: TokenLayout) -> bool:
    return isinstance(leaf, torch.Tensor) and (
        growth.plane is not None or (growth.tokens and grid.tokens > 0)
    )


@dataclass(frozen=True)
class _Known:
    """What other inputs say of one.

    Attributes:
        lengths: lengths of other sequences, which a joint one may hold beside the video.
        batches: first sizes of the tensors that carry the grid in a later dimension.
        returned: sizes that blocks return.
    """

    lengths: set[int]
    batches: set[int]
    returned: Collection[int]

    @staticmethod
    def of(inputs: Inputs, grid: TokenLayout, returned: Collection[int] = ()) -> _Known:
        shapes = [tuple(x.shape) for _, x in inputs.tensors()]
        lengths = {s for shape in shapes for s in shape[1:-1] or shape[1:]}
        ints = {x for x in inputs.leaves if _is_sized(x) and isinstance(x, int)}
        carriers = [shape for shape in shapes if any(g.dim for g in _whole(shape, grid))]
        rank = min(3, max(map(len, carriers), default=0))
        batches = {shape[0] for shape in carriers if len(shape) >= rank}
        return _Known(lengths | ints, batches, returned)


def _ways(leaf: torch.Tensor | int, grid: TokenLayout, known: _Known) -> list[Way]:
    """How one leaf may grow, the likeliest first."""
    found = (
        _tensor_ways(tuple(leaf.shape), grid, known)
        if isinstance(leaf, torch.Tensor)
        else _int_ways(leaf, grid, known)
    )
    best: dict[tuple[Growth, ...], int] = {}
    for cost, growths in found:
        best[growths] = min(cost, best.get(growths, cost))
    return sorted(((c, g) for g, c in best.items()), key=lambda way: (way[0], len(way[1])))


def _int_ways(value: int, grid: TokenLayout, known: _Known) -> Iterator[Way]:
    yield 0, ()
    if value == grid.frames:
        yield 1, (Growth(INT, 1),)
    if value == grid.tokens:
        yield 1, (Growth(INT, 1, tokens=True),)
    if value - grid.tokens in known.lengths:
        yield 2, (Growth(INT, 1, tokens=True, exact=False),)
    elif value > grid.tokens and value in known.returned:
        yield 2, (Growth(INT, 1, tokens=True, exact=False, padded=True),)


def _tensor_ways(sizes: Sequence[int], grid: TokenLayout, known: _Known) -> Iterator[Way]:
    whole = _whole(sizes, grid)
    first = [g for g in whole if g.dim == 0]
    natural = [g for g in whole if g.dim > 0]
    if len(sizes) < 3 and sizes and sizes[0] not in known.batches:
        natural = [*first, *natural]  # a table with a row for every token
    elif not natural and sizes[:1] and sizes[0] not in known.batches:
        natural = first
    yield (1 if natural else 0), ()
    for place, growth in enumerate(natural):
        yield min(place, 1), (growth,)
    for growth in first:
        yield (1 if len(sizes) < 3 else 2), (growth,)
    if len(sizes) > 1 and sizes[-1] == sizes[-2] == grid.tokens:  # a mask of all pairs
        rank = len(sizes)
        yield 1, tuple(Growth(d, 1, tokens=True) for d in (rank - 2, rank - 1))
    for dim, size in enumerate(sizes):
        if size - grid.tokens in known.lengths:
            yield (2 if natural else 1), (Growth(dim, 1, tokens=True, exact=False),)
        if size == grid.frames > 1:
            yield (1 if dim else 2), (Growth(dim, 1),)
    for growth in _planes(sizes, grid):
        if not growth.exact:
            yield (3 if natural else 2), (growth,)
    if natural:
        return
    for dim, size in enumerate(sizes[1:-2], 1):
        for step in (1, 4, 8):
            if size in _uncompressed(grid.frames, step):
                yield 3, (Growth(dim, step, exact=False),)


def _whole(sizes: Sequence[int], grid: TokenLayout) -> list[Growth]:
    """Dimensions that hold the grid whole: one entry a token, or frames before a plane."""
    tokens = [Growth(d, 1, tokens=True) for d, s in enumerate(sizes) if s == grid.tokens]
    planes = [g for g in _planes(sizes, grid) if g.exact]
    return [*planes, *tokens] if len(sizes) > 3 else [*tokens, *planes]


def _planes(sizes: Sequence[int], grid: TokenLayout) -> list[Growth]:
    """Dimensions that rows and columns of the grid follow, those of whole frames first."""
    found = [] if grid.height > 1 else _rows(sizes, grid)
    for f, h, w in itertools.combinations(range(len(sizes)), 3):
        rows, columns = divmod(sizes[h], grid.height), divmod(sizes[w], grid.width)
        if rows != columns or rows[1] or not rows[0] or not sizes[f]:
            continue
        per_frame, rest = divmod(sizes[f], grid.frames)
        if rest == 0:
            found.append(Growth(f, per_frame, plane=(h, w), scale=rows[0]))
        found += [
            Growth(f, step, exact=False, plane=(h, w), scale=rows[0])
            for step in (1, 2, 4, 8)
            if sizes[f] in _uncompressed(grid.frames, step) and (rest or step != per_frame)
        ]
    return sorted(found, key=lambda g: (g.dim == 0, g.per_frame, g.dim, -g.plane[0]))  # type: ignore[index]


def _rows(sizes: Sequence[int], grid: TokenLayout) -> list[Growth]:
    """Dimensions of rows that columns follow, in an image whose rows are in the place of frames."""
    found = []
    for h, w in itertools.combinations(range(1, len(sizes)), 2):
        rows, columns = divmod(sizes[h], grid.frames), divmod(sizes[w], grid.width)
        if len(sizes) > 3 and rows == columns and rows[0] and not rows[1]:
            found.append(Growth(h, rows[0], plane=(h, w), scale=rows[0]))
    return found


def _uncompressed(frames: int, step: int) -> set[int]:
    """Lengths of what has ``step`` entries a latent frame, save for one or two at an end."""
    whole = {step * (frames - less) + one for less in (0, 1, 2) for one in (0, 1)}
    return {size for size in whole | {frames + 1} if size > 0 and (step == 1 or size > frames)}


def _cheapest(ways: Sequence[Sequence[Way]]) -> Iterator[tuple[int, ...]]:
    """Choices of one way a leaf by their total cost, those in which less grows first."""

    def rank(choice: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        chosen = [options[c] for options, c in zip(ways, choice, strict=True)]
        return sum(cost for cost, _ in chosen), sum(len(g) for _, g in chosen), choice

    heap = [(rank(start := (0,) * len(ways)), start)] if math.prod(map(len, ways)) else []
    while heap:
        _, choice = heapq.heappop(heap)
        yield choice
        last = max((i for i, c in enumerate(choice) if c), default=0)
        for i in range(last, len(choice)):
            if choice[i] + 1 < len(ways[i]):
                raised = (*choice[:i], choice[i] + 1, *choice[i + 1 :])
                heapq.heappush(heap, (rank(raised), raised))
