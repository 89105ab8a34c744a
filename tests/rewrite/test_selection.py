"""Which blocks and which steps: what a selection may say, and what it selects."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fisopt import (
    FrameInterleave,
    OptionError,
    Pass,
    PreconditionError,
    Program,
    RulePass,
    ScheduleError,
    Step,
    TileAttention,
    TokenReduction,
)
from fisopt.rewrite.selection import among, outside, selection
from fisopt.rewrite.variants import Variants
from tests.passes.test_contract import SWAP

EVERY = [FrameInterleave, TileAttention, TokenReduction, RulePass]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (":", ":"),
        (" 1 : -2 ", "1:-2"),
        ("0, 3 , -1", "0,3,-1"),
        ((0, 3, -1), "0,3,-1"),
        ([2], "2"),
        (-1, "-1"),
        ("::2", "::2"),
        (" 25% : 100%", "25%:100%"),
    ],
)
def test_a_selection_is_text(value: Any, text: str) -> None:
    assert selection("blocks", value) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        "1,",
        "a",
        "1-2",
        "::0",
        "::-1",
        "1:2:3:4",
        "50%",
        "101%:",
        "-5%:",
        "::5%",
        (),
        (True,),
        1.0,
        None,
        "9" * 40,
    ],
)
def test_what_is_no_selection(value: Any) -> None:
    with pytest.raises(OptionError, match="blocks must be numbers and slices such as"):
        selection("blocks", value)


def test_it_selects_what_python_does() -> None:
    """Against Python's own slices of a list, of every form and at every length."""
    source = random.Random(0)
    for _ in range(500):
        count = source.randrange(1, 7)
        bounds = ["", *range(-count, count + 1)]
        items = [
            source.choice([f"{source.choice(bounds)}:{source.choice(bounds)}", "::2", "0", "-1"])
            for _ in range(source.randrange(1, 3))
        ]
        numbers, wanted = list(range(count)), set()
        for item in items:
            wanted |= set(eval(f"numbers[{item}]")) if ":" in item else {numbers[int(item)]}
        assert outside(",".join(items), count) is None
        assert [i for i in numbers if among(",".join(items), i, count)] == sorted(wanted)


def test_a_bound_may_be_a_share() -> None:
    """Rounded, so that slices that share a bound neither overlap nor leave one out."""
    chosen = {n: [i for i in range(n) if among("25%:50%", i, n)] for n in range(1, 9)}
    assert chosen[4] == [1]
    assert chosen[5] == [1, 2]
    assert chosen[8] == [2, 3]
    for count in range(1, 60):
        parts = [":25%", "25%:50%", "50%:87%", "87%:"]
        assert all(sum(among(p, i, count) for p in parts) == 1 for i in range(count))
    with pytest.raises(ScheduleError, match=r"Some: steps=':25%' depends on the number of steps"):
        Step(0).among(":25%", "Some")


def test_steps_need_no_count_that_they_do_not_use() -> None:
    assert [among("1:,0", i, None) for i in range(3)] == [True] * 3
    assert [among("2:9", i, 4) for i in range(4)] == [False, False, True, True]
    with pytest.raises(ScheduleError, match=r"Some: steps=':-1' depends on the number of steps"):
        Step(0).among(":-1", "Some")


@pytest.mark.parametrize("kind", EVERY)
def test_every_pass_is_dense_at_other_steps(kind: Any) -> None:
    options = {TokenReduction: {"query": 0.5, "cache_steps": 1}}.get(kind, {})
    active = Variants.of([kind(steps="1:-1", **options)], 4)
    assert active.stepwise == (kind.__name__,)
    assert [bool(v.passes) for v in active.schedule] == [False, True, True, False]
    assert not kind(**options).stepwise


def test_a_match_is_made_at_the_first_active_step_of_a_window() -> None:
    step = TokenReduction(query=0.5, cache_steps=3, steps="1:")
    states = [getattr(step.at(Step(i, 6)), "state", None) for i in range(6)]
    assert states == [None, "store", "load", "store", "load", "load"]


@pytest.mark.parametrize("kind", EVERY)
def test_every_pass_leaves_other_blocks_as_they_were(kind: Any, wan: Program) -> None:
    step = changed(kind, "1,-1")
    result = step(wan).program
    edited = [a.body is not b.body for a, b in zip(result.blocks, wan.blocks, strict=True)]
    assert edited == [False, True, False, True]
    with pytest.raises(PreconditionError, match=r"blocks='0,4': 4 is outside the model's 4 video"):
        changed(kind, (0, 4))(wan)
    with pytest.raises(PreconditionError, match="blocks='2:2': these are none of the model's 4"):
        changed(kind, "2:2")(wan)


def changed(kind: Any, blocks: Any) -> Pass:
    """A pass that changes what it is applied to."""
    options: dict[Any, Any] = {TokenReduction: {"query": 0.5}, RulePass: {"rules": (SWAP,)}}
    step: Pass = kind(blocks=blocks, **options.get(kind, {}))
    return step
