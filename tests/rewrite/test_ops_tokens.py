"""Matching, reducing and restoring tokens: partitions, references against loops, registration."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fisopt.rewrite.ops import match_tokens
from fisopt.rewrite.partition import destination_count, destinations, sources_to_keep
from tests.passes.dense_reduction import left_of

MATCH = torch.ops.fisopt.match_tokens.default
REDUCE = torch.ops.fisopt.reduce_tokens.default
RESTORE = torch.ops.fisopt.restore_tokens.default

sizes = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7))
strides = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))


@given(grid=sizes, stride=strides, seed=st.integers(0, 9))
def test_one_destination_in_every_cell(
    grid: tuple[int, int, int], stride: tuple[int, int, int], seed: int
) -> None:
    chosen = destinations(grid, stride, seed)
    assert len(chosen) == destination_count(grid, stride)
    assert len(chosen) == math.prod(g // s for g, s in zip(grid, stride, strict=True))
    if not len(chosen):
        return
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    places = torch.stack(torch.unravel_index(chosen, grid), 1)
    fits = [
        start
        for start in torch.cartesian_prod(
            *(torch.arange(max(1, g % s)) for g, s in zip(grid, stride, strict=True))
        ).reshape(-1, 3)
        if bool((places >= start).all())
        and len({tuple(c) for c in ((places - start) // torch.tensor(stride)).tolist()})
        == len(chosen)
    ]
    assert fits, "no placing of the cells has one destination in each"


def test_destinations_are_seeded() -> None:
    grid, stride = (9, 8, 7), (2, 2, 2)
    assert torch.equal(destinations(grid, stride, 0, 3, "q"), destinations(grid, stride, 0, 3, "q"))
    others = [destinations(grid, stride, *key) for key in ((1, 3, "q"), (0, 4, "q"), (0, 3, "v"))]
    assert not any(torch.equal(destinations(grid, stride, 0, 3, "q"), o) for o in others)
    everywhere = torch.cat([destinations(grid, stride, seed) for seed in range(300)])
    assert len(everywhere.unique()) == 8 * 8 * 6, "a rim of one lies behind the last cell"
    even = torch.cat([destinations((8, 8, 6), stride, seed) for seed in range(300)])
    assert len(even.unique()) == 8 * 8 * 6, "some token is never a destination"


@pytest.mark.parametrize(
    ("grid", "stride", "count"),
    [
        ((13, 30, 45), (2, 2, 2), 1980),
        ((33, 34, 60), (6, 2, 2), 2550),
        ((17, 45, 80), (6, 2, 2), 1760),
        ((15, 30, 53), (6, 2, 2), 780),
    ],
)
def test_published_destination_counts(
    grid: tuple[int, int, int], stride: tuple[int, int, int], count: int
) -> None:
    assert destination_count(grid, stride) == len(destinations(grid, stride)) == count


@pytest.mark.parametrize("rim", [1, 2, 3, 5])
def test_the_rim_lies_to_the_left_at_most_all_but_one(rim: int) -> None:
    """6 + rim entries and cells of 6: the only cell starts at 0 .. rim - 1, each as likely."""
    chosen = [int(destinations((6 + rim, 1, 1), (6, 1, 1), seed)) for seed in range(600)]
    assert set(chosen) == set(range(5 + rim)), "a cell that starts at rim would reach 5 + rim"
    ends = [chosen.count(0), chosen.count(4 + rim)]
    assert all(count == pytest.approx(600 / (6 * rim), abs=60 / rim + 20) for count in ends)


@pytest.mark.parametrize("ratio", [j / 10 for j in range(1, 10)])
def test_sources_to_keep(ratio: float) -> None:
    """As many as the authors' own arithmetic leaves, at every size and published share."""
    for tokens in (*range(1, 2000), 17550, 23850, 61200, 67320):
        for count in (0, tokens // 8, tokens // 24):
            want = max(0, left_of(tokens, ratio) - count)
            assert sources_to_keep(tokens, count, ratio) == want, (tokens, count)


@given(tokens=st.integers(1, 70000), hundredths=st.integers(0, 99), count=st.integers(0, 3000))
def test_sources_to_keep_at_other_shares(tokens: int, hundredths: int, count: int) -> None:
    want = max(0, left_of(tokens, hundredths / 100) - count)
    assert sources_to_keep(tokens, count, hundredths / 100) == want


def test_where_doubles_fall_short() -> None:
    """By hand: 1 - .8 and 1 - .9 are a little less than they say, and truncation shows it."""
    assert [sources_to_keep(n, 0, 0.8) for n in (5, 10, 35, 100)] == [0, 1, 6, 19]
    assert [sources_to_keep(n, 0, 0.9) for n in (10, 20, 100)] == [0, 1, 9]
    assert [sources_to_keep(n, 0, 0.7) for n in (10, 20, 100)] == [3, 6, 30]


def groups(x: Tensor, chosen: list[int], keep: int) -> tuple[list[int], dict[int, int]]:
    """Kept tokens and what stands for each, for one sequence [N, D], by loops."""
    sources = [i for i in range(len(x)) if i not in chosen]
    distance = {s: [float((x[s] - x[d]).square().sum()) for d in chosen] for s in sources}
    ranked = sorted(sources, key=lambda s: -min(distance[s]))
    kept = [*chosen, *sorted(ranked[:keep])]
    nearest = {s: chosen[distance[s].index(min(distance[s]))] for s in ranked[keep:]}
    return kept, {i: nearest.get(i, i) for i in range(len(x))}


layouts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))


@given(
    layout=layouts,
    tokens=st.integers(2, 20),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_match(layout: tuple[int, int, int, int], tokens: int, share: float, data: Any) -> None:
    batch, heads, before, after = layout
    picks = st.sets(st.integers(0, tokens - 1), min_size=1, max_size=tokens)
    chosen = sorted(data.draw(picks))
    keep = int(share * (tokens - len(chosen)))
    x = torch.randn(batch, heads, before + tokens + after, 3, dtype=torch.float64)
    kept, origin, lost = MATCH(x, torch.tensor(chosen), keep, before, after)
    for b in range(batch):
        for h in range(heads):
            want, stands = groups(x[b, h, before : before + tokens], chosen, keep)
            entries = [
                *range(before),
                *(before + i for i in want),
                *range(before + tokens, before + tokens + after),
            ]
            assert kept[b, h].tolist() == entries
            text = [*range(before), *range(before + tokens, before + tokens + after)]
            stands = {i: i for i in text} | {before + i: before + j for i, j in stands.items()}
            got = {i: entries[int(j)] for i, j in enumerate(origin[b, h])}
            assert got == stands
            gone = sum(float((x[b, h, i] - x[b, h, j]).square().sum()) for i, j in stands.items())
            norm = float(x[b, h, before : before + tokens].square().sum())
            assert float(lost[b, h]) == pytest.approx(gone / norm, abs=1e-6)
    same = MATCH(x, torch.tensor(chosen), keep, before, after, True)
    assert torch.equal(same[0], kept)
    assert torch.equal(same[1], origin)
    assert same[2].shape == (11,)
    assert bool((same[2].diff() >= 0).all())


def test_profile() -> None:
    """What dropping the most similar tenths loses, relative to the norm of the tokens."""
    x = torch.randn(2, 3, 40, 5, dtype=torch.float64)
    chosen = torch.arange(0, 40, 4)
    profile = MATCH(x, chosen, 0, 0, 0, True)[2]
    want = torch.zeros(11, dtype=torch.float64)
    sources = [i for i in range(40) if i % 4]
    for row in x.flatten(0, 1):
        least = sorted(float((row[s] - row[chosen]).square().sum(-1).min()) for s in sources)
        for j in range(11):
            want[j] += sum(least[: 4 * j]) / float(row.square().sum()) / 6
    torch.testing.assert_close(profile, want.float())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 50, 7)
    args = (x, torch.arange(0, 45, 5), 9, 2, 3)
    whole = MATCH(*args)
    for budget in (1, 300, 2000):
        monkeypatch.setattr(match_tokens, "_BUDGET", budget)
        for got, want in zip(MATCH(*args), whole, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("profile", [True, False])
def test_what_is_lost_shows_what_is_not_finite(bad: float, profile: bool) -> None:
    x = torch.randn(1, 2, 12, 4)
    for place in ((0, 1, 3, 2), (0, 0, 4, 0)):  # a source and a destination
        spoilt = x.clone()
        spoilt[place] = bad
        assert not MATCH(spoilt, torch.tensor([0, 4, 8]), 2, 0, 0, profile)[2].isfinite().all()
    assert MATCH(x, torch.tensor([0, 4, 8]), 2, 0, 0, profile)[2].isfinite().all()


def test_duplicates_are_restored_exactly() -> None:
    """Four different tokens, each repeated: any destination stands exactly for its copies."""
    for dtype in (torch.float32, torch.bfloat16):
        different = torch.randn(2, 3, 4, 8).to(dtype)
        order = torch.randperm(20) % 4
        x = different[:, :, order]
        chosen = torch.tensor([int((order == i).nonzero()[0]) for i in range(4)]).sort().values
        kept, origin, _ = MATCH(x, chosen, 0, 0, 0)
        assert torch.equal(RESTORE(REDUCE(x, kept, None, 2), origin, 2, 5, 0, 0), x)


@given(dim=st.integers(1, 2), lead=st.integers(1, 3), size=st.integers(3, 12), data=st.data())
def test_reduce_and_restore(dim: int, lead: int, size: int, data: Any) -> None:
    """Against loops, along either dimension behind the leading one, as it is and as a mean."""
    shape = [lead, 4, 4]
    shape[dim] = size
    x = torch.randn(shape, dtype=torch.float64)
    kept, origin = [], []
    for _ in range(lead):
        mine = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=2, max_size=2)))
        stands = [data.draw(st.integers(0, 1)) for _ in range(size)]
        for place, entry in enumerate(mine):
            stands[entry] = place
        kept.append(mine)
        origin.append(stands)
    indices = (torch.tensor(kept, dtype=torch.int32), torch.tensor(origin, dtype=torch.int32))
    taken, mean = REDUCE(x, indices[0], None, dim), REDUCE(x, *indices, dim)
    restored = RESTORE(taken, indices[1], dim, 0, 0, 0)
    for i in range(lead):
        for place in range(2):
            members = [e for e in range(size) if origin[i][e] == place]
            own = torch.stack([x[i].select(dim - 1, e) for e in members]).mean(0)
            torch.testing.assert_close(mean[i].select(dim - 1, place), own)
            assert torch.equal(
                taken[i].select(dim - 1, place), x[i].select(dim - 1, kept[i][place])
            )
        for entry in range(size):
            stands_for = x[i].select(dim - 1, kept[i][origin[i][entry]])
            assert torch.equal(restored[i].select(dim - 1, entry), stands_for)


def small() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 14, 4), torch.tensor([1, 4, 7])


def test_registration() -> None:
    x, chosen = small()
    torch.library.opcheck(MATCH, (x, chosen, 3, 1, 2))
    permuted = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(MATCH, (permuted, chosen, 0, 0, 3, True))
    kept, origin, _ = MATCH(x, chosen, 3, 1, 2)
    torch.library.opcheck(RESTORE, (x[:, :, :9], origin, 2, 0, 1, 2))
    for given_origin in (None, origin):
        torch.library.opcheck(REDUCE, (x, kept, given_origin, 2))


def test_compiles_whole() -> None:
    x, chosen = small()

    def call(x: Tensor) -> Tensor:
        kept, origin, _ = MATCH(x, chosen, 3, 1, 2)
        return RESTORE(REDUCE(x, kept, origin, 2) * 2, origin, 2, 0, 1, 2)

    with torch.no_grad():
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), call(x))


class Live(TorchDispatchMode):
    """Counts the bytes that are alive at once of what operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [a for a in args if isinstance(a, Tensor)]
        self.known |= {a.untyped_storage()._cdata for a in given}
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(made, Tensor):
                continue
            storage = made.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed(storage._cdata, storage.nbytes()))
        return result

    def _freed(self, key: int, size: int) -> Callable[[], None]:
        def drop() -> None:
            self.now -= size
            self.known.discard(key)

        return drop


def test_memory_of_one_hunyuanvideo_head() -> None:
    """67,320 tokens, 2,550 destinations: 330 MB of distances, of which a few MiB are held."""
    grid, stride = (33, 34, 60), (6, 2, 2)
    x = torch.randn(1, 1, math.prod(grid), 128, dtype=torch.bfloat16)
    chosen = destinations(grid, stride, 0)
    with Live() as live:
        kept, *_ = match_tokens.match_tokens.reference(x, chosen, 4182, 0, 0)
    assert kept.shape[-1] == 2550 + 4182
    assert 1 << 20 < live.peak < 64 << 20, live.peak
