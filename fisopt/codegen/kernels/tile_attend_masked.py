"""tile_attend_masked by dense attentions: those over keys that all see run without a mask."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fisopt.codegen.kernels import tile_merge
from fisopt.codegen.kernels.cuts import cheapest
from fisopt.codegen.kernels.pieces import Cut, Piece, Range, Segment, apart
from fisopt.codegen.kernels.plan_cache import once_a_plan
from fisopt.rewrite.ops.tile_attend_masked import whole_mask

OP = "fisopt::tile_attend_masked"


def supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    start: int,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> None:
    """Check that dense attentions can make up this call of the contract.

    Raises:
        LoweringError: they cannot; the message names what it got and what is supported.
    """
    del start
    tile_merge.supports(query, key, value, mask, rows, keys, pairs, scale)


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    start: int,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """Run the contract's arguments by the cheapest cut of their plan.

    Raises:
        LoweringError: see `supports`; or every backend fails.
    """
    supports(query, key, value, mask, start, rows, keys, pairs, scale)
    heads, hidden = query.shape[:-2].numel(), (start, start + mask.shape[-1])

    def made() -> Cut:
        return divided(cheapest(rows.tolist(), keys[0].tolist(), heads), hidden)

    cut = once_a_plan(rows, keys, (OP, heads, hidden), made)
    whole = whole_mask(mask, start, key.shape[-2])
    return tile_merge.run(cut, query, key, value, whole, scale, hidden)


def divided(cut: Cut, hidden: Range) -> Cut:
    """The same attentions, those over hidden and other keys in two; windows stay as they are."""
    pieces: list[Piece] = []
    numbers: list[range] = []
    for piece in cut.pieces:
        keys = apart(piece.keys, hidden) if piece.windows == 1 else [piece.keys]
        numbers.append(range(len(pieces), len(pieces) + len(keys)))
        pieces += [replace(piece, keys=some) for some in keys]
    segments = (
        Segment(s.start, s.end, tuple((n, at) for part, at in s.parts for n in numbers[part]))
        for s in cut.segments
    )
    return Cut(tuple(pieces), tuple(segments))
