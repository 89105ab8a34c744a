"""Which passes run at which step, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fisopt import (
    FrameInterleave,
    OptionError,
    Pass,
    Rewriter,
    ScheduleError,
    Step,
    StepCache,
    TokenReduction,
)
from fisopt.rewrite.measured import Measured, UnmeasuredError
from fisopt.rewrite.variants import Variant, Variants

LATE, CACHED = FrameInterleave(steps="1:"), TokenReduction(0.5, cache_steps=2, redraw=False)


@dataclass(frozen=True)
class While(Pass):
    """Active while what it measured is small."""

    asks: str = "change"
    stepwise: bool = True

    def at(self, step: Step) -> Pass | None:
        return self if step.index < 1 or step.measured[self.asks] < 0.5 else None

    def run(self, rewriter: Rewriter) -> None:
        raise NotImplementedError


def test_steps_share_variants() -> None:
    variants = Variants.of([LATE, CACHED], 4)
    assert variants.stepwise == ("FrameInterleave", "TokenReduction")
    assert [v.names for v in variants.schedule] == [
        ("TokenReduction",),
        *[("FrameInterleave", "TokenReduction")] * 3,
    ]
    first, second, third, fourth = variants.schedule
    assert second == fourth != third
    assert second.afresh() == third, "the pass that loads stores instead"
    assert second.differs(third) == ("TokenReduction",)
    assert second.afresh(["FrameInterleave"]) == second
    assert variants.distinct == (first, second, third)


def test_steps_that_do_not_matter_are_one() -> None:
    every = Variants.of([FrameInterleave()])
    assert every.schedule == every.distinct == (every.whole,)
    assert Variants.of([]).schedule == (Variant(),)


def test_each_pass_of_a_list_has_a_name_of_its_own() -> None:
    """A name is that of the place in the list, whatever else runs at a step."""
    twice = Variants.of([LATE, FrameInterleave(3)], 2)
    assert [v.names for v in twice.schedule] == [
        ("FrameInterleave 2",),
        ("FrameInterleave", "FrameInterleave 2"),
    ]


def test_what_is_measured_decides_in_a_run_only() -> None:
    seen: list[tuple[str, str]] = []

    def read(owner: str, key: str) -> dict[str, float]:
        seen.append((owner, key))
        return {"While/change": 0.9, "While 2/change": 0.1, "Other/change": 0.2}

    passes = [While(), While(), While("Other/change")]
    now = Variants.of(passes).at(Step(3), read)
    assert now.names == ("While 2", "While 3"), "own numbers first, then those of others"
    assert seen == [("While", "change"), ("While 2", "change"), ("While 3", "Other/change")]
    with pytest.raises(
        ScheduleError, match=r"While decides by its measurements .it reads 'change'"
    ):
        _ = Variants.of(passes, 4).schedule


def test_what_is_not_measured_yet() -> None:
    measured = Measured("While", lambda owner, key: {"While/change": 0.5, "Other/size": 2.0})
    assert dict(measured) == {"change": 0.5, "Other/size": 2.0}
    assert len(measured) == 2
    assert measured.get("size", 1.0) == 1.0
    assert "size" not in measured
    with pytest.raises(UnmeasuredError, match="While reads measurement 'size', which no step"):
        measured["size"]


class Forgot(FrameInterleave):
    """A pass of a user's with `at` alone."""

    def at(self, step: Step) -> Pass | None:
        return self if step.index > 2 else None


class Slashed(FrameInterleave):
    name = "a/b"  # type: ignore[assignment]


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="Forgot defines `at` and no `stepwise`"):
        Variants.of([Forgot()])
    with pytest.raises(OptionError, match="a pass is named 'a/b'"):
        Variants.of([Slashed()])
    with pytest.raises(ScheduleError, match="num_steps must be at least 1, got True"):
        Variants.of([], True)
    with pytest.raises(ScheduleError, match="FrameInterleave differs between denoising steps"):
        _ = Variants.of([LATE]).schedule
    with pytest.raises(ScheduleError, match="step -1 does not exist"):
        Variants.of([LATE]).at(Step(-1))


def test_passes_of_other_steps_are_not_put_together() -> None:
    early, late = FrameInterleave(steps=":2"), FrameInterleave(stride=3, steps="2:")
    cache = StepCache(steps="3")
    fullest = Variants.of([early, late, cache]).fullest
    assert fullest == Variant((early, cache), ("FrameInterleave", "StepCache"))
    parts = [FrameInterleave(blocks="1:3"), FrameInterleave(stride=3, blocks="3:")]
    assert Variants.of(parts).fullest == Variants.of(parts).whole
