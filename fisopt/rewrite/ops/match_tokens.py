"""match_tokens: pair every source token with its nearest destination and rank the sources.

The video tokens of a sequence are destinations, which always stay, and sources, all others.
With d(s) = min over destinations y of |x_s - y|^2, the ``keep`` sources of largest d stay too;
every other source is dropped and stands behind its nearest destination.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.rewrite.axes import Axes
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.relations.table import Relation, argument, barrier, operand_of, shape

LEVELS = 10
"""Steps of the profile: entry j is what dropping j/10 of the tokens loses."""
RANKING = 128
"""Bytes that finding what stays and writing the indices moves for each token, some ten passes."""
_BUDGET = 16 << 20
"""Bytes of one chunk of distances; the whole matrix is never held."""
Nearest = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of video [R, N, D], destinations [K] and sources [N - K]: what `_nearest` returns."""


def match_with(
    nearest_of: Nearest,
    x: Tensor,
    destinations: Tensor,
    keep: int,
    before: int,
    after: int,
    profile: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`match_tokens` with another search of the nearest destinations."""
    lead, size = x.shape[:-2], x.shape[-2]
    tokens, count = size - before - after, destinations.shape[0]
    video = x.narrow(-2, before, tokens).reshape(-1, tokens, x.shape[-1])
    is_source = torch.ones(tokens, dtype=torch.bool, device=x.device)
    sources = _places(is_source.index_fill_(0, destinations, False), tokens - count)
    nearest, distance, energy = nearest_of(video, destinations, sources)
    # a search may never meet what is not a number: the results must show it all the same
    energy = torch.where(energy.isfinite(), energy, torch.nan)
    stays = _largest(distance, keep)
    stay = sources[_places(stays, keep)]
    rows = video.shape[0]
    origin = torch.empty(rows, tokens, dtype=torch.int64, device=x.device)
    origin[:, destinations] = torch.arange(count, device=x.device)
    origin[:, sources] = nearest
    origin.scatter_(1, stay, torch.arange(count, count + keep, device=x.device).expand(rows, -1))
    middle = before + count + keep
    head = torch.arange(before, device=x.device).expand(rows, -1)
    tail = torch.arange(after, device=x.device).expand(rows, -1)
    kept = torch.cat(
        [head, destinations.expand(rows, -1) + before, stay + before, tail + size - after], dim=1
    )
    origin = torch.cat([head, origin + before, tail + middle], dim=1)
    if profile:
        lost = _profile(distance.sort(dim=-1).values, energy, tokens)
    else:
        lost = ((distance * ~stays).sum(-1) / _positive(energy)).reshape(lead)
    return (
        kept.to(torch.int32).reshape(*lead, -1),
        origin.to(torch.int32).reshape(*lead, -1),
        lost.to(torch.float32),
    )


def _largest(distance: Tensor, keep: int) -> Tensor:
    """Where the ``keep`` largest of each row are, the first ones of equals; without a sort."""
    if keep == 0:
        return torch.zeros_like(distance, dtype=torch.bool)
    least = distance.topk(keep, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = distance > least, distance == least
    room = keep - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def _places(mask: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` entries of each row that are true, in their order."""
    place = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    rank = torch.where(mask, mask.cumsum(-1) - 1, count)
    room = place.new_zeros(*mask.shape[:-1], count + 1)
    return room.scatter_(-1, rank, place)[..., :count]


def _nearest(video: Tensor, destinations: Tensor, sources: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest destination of each source, its squared distance, and the tokens' squared norm.

    Shapes: video [R, N, D]; results [R, N - K] int64, [R, N - K] and [R].
    """
    wide = torch.promote_types(video.dtype, torch.float32)
    width, count = video.shape[2], destinations.shape[0]
    element = torch.empty((), dtype=wide).element_size()
    group = max(1, _BUDGET // max(1, count * width * element))
    left, start = sources.shape[0], 0
    nearest = torch.empty(len(video), left, dtype=torch.int64, device=video.device)
    distance = torch.empty(len(video), left, dtype=wide, device=video.device)
    energy = torch.empty(len(video), dtype=wide, device=video.device)
    for part in torch.split(video, group):
        mine = slice(start, start := start + len(part))
        y = part.index_select(1, destinations).to(wide)
        norm = y.square().sum(-1)
        total = norm.sum(-1)
        rows = max(1, _BUDGET // max(1, len(part) * (count + width) * element))
        room = torch.empty(len(part) * min(rows, left) * count, dtype=wide, device=video.device)
        for first in range(0, left, rows):
            chunk = sources[first : first + rows]
            z = part.index_select(1, chunk).to(wide)
            own = z.square().sum(-1)
            scores = room[: len(part) * len(chunk) * count].view(len(part), len(chunk), count)
            torch.baddbmm(norm.unsqueeze(1), z, y.transpose(1, 2), alpha=-2, out=scores)
            least, index = scores.min(dim=-1)
            distance[mine, first : first + rows] = (least + own).clamp_(min=0)
            nearest[mine, first : first + rows] = index
            total = total + own.sum(-1)
        energy[mine] = total
    return nearest, distance, energy


def _profile(ascending: Tensor, energy: Tensor, tokens: int) -> Tensor:
    """Share of the energy that is lost with the first j/10 of the tokens, j = 0 .. 10."""
    lost = ascending.cumsum(-1) / _positive(energy).unsqueeze(-1)
    lost = torch.cat([torch.zeros_like(energy).unsqueeze(-1), lost], dim=-1).mean(0)
    dropped = [min(tokens * j // LEVELS, ascending.shape[-1]) for j in range(LEVELS + 1)]
    return torch.stack([lost[n] for n in dropped])


def _positive(energy: Tensor) -> Tensor:
    return energy.clamp(min=torch.finfo(energy.dtype).tiny)


def fake(
    x: Tensor, destinations: Tensor, keep: int, before: int, after: int, profile: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of the right shape."""
    lead, size = x.shape[:-2], x.shape[-2]
    short = before + destinations.shape[0] + keep + after
    return (
        x.new_empty(*lead, short, dtype=torch.int32),
        x.new_empty(*lead, size, dtype=torch.int32),
        x.new_empty((LEVELS + 1,) if profile else lead, dtype=torch.float32),
    )


def no_axes(node: fx.Node) -> Axes:
    """Axis rule: indices carry no frames."""
    del node
    return ()


def by_itself(node: fx.Node) -> Relation:
    """Relation of a match: each leading index for itself, but for a profile, which is of all."""
    profile = len(node.target._schema.arguments) - 1  # type: ignore[union-attr]
    if argument(node, profile, "profile", False):
        return barrier(node)
    x, destinations = operand_of(node, 0), operand_of(node, 1)
    rank = len(shape(x))
    result = Relation(mixed=[(x, rank - 2), (x, rank - 1), (destinations, 0)], kept={rank - 2})
    for d in range(rank - 2):
        result.link(x, d, d)
    return result


def _flops(
    x: Any, destinations: Any, keep: int, before: int, after: int, profile: bool = False
) -> float:
    """FLOPs of the distances: a multiply-add for each feature of each pair."""
    del keep, profile
    tokens, count = x.shape[-2] - before - after, destinations.shape[0]
    return float(2 * x.shape[:-2].numel() * (tokens - count) * count * x.shape[-1])


def _traffic(x: Any, *rest: Any) -> float:
    """Tokens are read once, by tiles that stay on the chip; distances are never written."""
    return float(x.numel() * x.element_size() + RANKING * x.shape[:-1].numel())


@operator(
    "fisopt::match_tokens",
    fake=fake,
    example=(torch.eye(3, device="cpu"), torch.tensor([0], device="cpu"), 1, 0, 0),
    axes=no_axes,
    relation=by_itself,
    flops=_flops,
    traffic=_traffic,
    counts_as="matching",
    gradient="zero",
    opaque=True,
)
def match_tokens(
    x: Tensor, destinations: Tensor, keep: int, before: int, after: int, profile: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Match in plain torch, each leading index (batch, head) for itself.

    Shapes: x [..., S, D] with S = before + N + after; destinations [K] int64, increasing, in
        [0, N); 0 <= keep <= N - K.

    Returns:
        kept [..., M] int32, M = before + K + keep + after: positions in x of the entries that
            stay: those before, the destinations, the kept sources, those after;
        origin [..., S] int32: for every entry of x the position in ``kept`` that stands for it;
        lost [...] float32: the squared distance between dropped tokens and those that stand for
            them, as a share of the tokens' squared norm; with ``profile`` [11], the same if the
            most similar j tenths of the tokens are dropped, mean over the leading indices.  Not
            finite if x is not.
    """
    return match_with(_nearest, x, destinations, keep, before, after, profile)
