"""Runs of steps that reuse: which there are, which are measured, and what the others are taken for."""

from __future__ import annotations

import pytest

import fisopt
from fisopt.tuning.reuse import (
    LAST,
    MOST,
    Reuse,
    cache_of,
    even_runs,
    guessed,
    reuses_of,
    screened,
)


def test_a_transformer_computes_its_first_step_and_one_after_each_run() -> None:
    runs = list(reuses_of("second", [3, 4, 7]))
    assert runs == [
        Reuse("second", (4,), 7),
        Reuse("second", (4, 7), None),
        Reuse("second", (7,), None),
    ]
    assert str(runs[1]) == "second steps 4-7 reuse"
    many = list(reuses_of("only", range(25)))
    assert max(len(r.steps) for r in many) == MOST
    assert len(many) == len(set(many)) == sum(24 - n + 1 for n in range(1, MOST + 1))
    assert not any(0 in r.steps for r in many)


def test_single_steps_and_three_runs_of_each_length_are_measured() -> None:
    many = list(reuses_of("only", range(25)))
    found = screened(many)
    assert len(found) == len(set(found)) == 24 + 3 * (MOST - 1)
    assert screened(runs := list(reuses_of("only", range(4)))) == sorted(
        runs, key=lambda r: len(r.steps)
    )


def test_a_guess_is_exact_where_runs_add_the_same_share_to_their_steps() -> None:
    many = list(reuses_of("only", range(12)))
    true = {r: sum(1 + s for s in r.steps) / len(r.steps) * len(r.steps) ** 1.5 for r in many}
    found = guessed(many, {r: true[r] for r in screened(many)})
    assert found == pytest.approx(true)
    single = {r: true[r] for r in screened(many) if len(r.steps) == 1}
    assert set(guessed(many, single)) == set(single)


def test_even_runs_leave_every_so_many_steps_and_the_last_ones() -> None:
    assert even_runs("only", range(9), 3, 2) == [
        Reuse("only", (1, 2), 3),
        Reuse("only", (4, 5), 6),
    ]
    assert even_runs("second", [3, 4, 7], 2, 1) == [Reuse("second", (4,), 7)]
    known = {*reuses_of("only", range(25))}
    for every in range(2, MOST + 2):
        for last in LAST:
            runs = even_runs("only", range(25), every, last)
            assert known.issuperset(runs)
            reused = {s for run in runs for s in run.steps}
            assert {*range(25)} - reused == {*range(0, 25, every), *range(25 - last, 25)}


@pytest.mark.parametrize(
    ("every", "last", "wider", "computed"),
    [
        (2, 1, 1, [0, 3, 5, 7, 9]),
        (2, 1, -2, [0, 1, 3, 6, 9]),
        (1, 2, 3, [0, 2, 4, 6, 7, 8, 9]),
        (1, 2, -3, [0, 1, 2, 4, 6, 8, 9]),
        (3, 1, 1, [0, 4, 7, 9]),
    ],
)
def test_the_first_or_last_runs_may_be_a_step_longer(
    every: int, last: int, wider: int, computed: list[int]
) -> None:
    runs = even_runs("only", range(10), every, last, wider)
    assert {*reuses_of("only", range(10))}.issuperset(runs)
    assert {*range(10)} - {s for run in runs for s in run.steps} == {*computed}


def test_what_many_steps_reuse_is_forecast() -> None:
    assert cache_of([3, 1], 4) == fisopt.StepCache(steps=[1, 3], blocks=":")
    assert cache_of([3, 1], 25) == fisopt.StepCache(steps=[1, 3], blocks=":", order=1)
