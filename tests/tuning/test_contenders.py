"""Presets in a search: it returns no plan that is worse than one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fisopt
from fisopt import FrameInterleave, PassError, StepCache
from fisopt.passes import presets
from fisopt.rewrite.rewriter import Rewriter
from fisopt.tuning import component as component_module
from fisopt.tuning import contenders, pricing
from fisopt.tuning import space as space_module
from tests.denoiser import Denoiser
from tests.tuning.test_tune import PROMPTS, latents

pytestmark = [pytest.mark.xdist_group("wan"), pytest.mark.usefixtures("captured_once", "late")]
GIVEN: dict[str, Any] = {"prompts": PROMPTS, "steps": 2, "minutes": 9}
SLOW = FrameInterleave(stride=2, blocks=":", kv="all")
FAST = FrameInterleave(stride=3, blocks=":")


class Broken(FrameInterleave):
    """It cannot run."""

    def run(self, rewriter: Rewriter) -> None:
        """Fail."""
        raise PassError("it needs a model of five blocks", pass_name="Broken")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three presets, and a search whose time is up before anything is priced."""
    given: dict[str, tuple[str, tuple[Any, ...]]] = {
        name: ("", (each,))
        for name, each in {"slow": SLOW, "fast": FAST, "broken": Broken(stride=2)}.items()
    }
    monkeypatch.setattr(component_module, "options_of", lambda *_: ())
    for module in (presets, contenders, pricing, space_module):
        monkeypatch.setattr(module, "PRESETS", given)

    def screen(_: Any) -> None:
        raise pricing.OutOfTimeError

    monkeypatch.setattr(pricing.Prices, "screen", screen)


def plain(pass_: Any) -> float:
    """The error of a pass over both prompts, by plain runs."""
    pipeline = Denoiser()
    dense = [latents(pipeline, i, 2) for i in range(2)]
    fisopt.optimize(pipeline, [pass_], backend="eager")
    ends = [float((latents(pipeline, i, 2) - d).norm() / d.norm()) for i, d in enumerate(dense)]
    return (ends[0] * ends[1]) ** 0.5


def test_a_search_whose_time_is_up_returns_the_preset_that_reaches_the_speed() -> None:
    made = fisopt.tune(Denoiser(), "1.2x", **GIVEN)
    assert made.reached
    assert made.passes == {"transformer": [SLOW]}
    assert made.recipes["transformer"].passes == (SLOW,)
    assert made.error == pytest.approx(plain(SLOW), rel=1e-3)
    assert made.predicted == pytest.approx(made.error, rel=1e-6)
    assert made.choices == ()
    said = "; ".join(made.notes)
    assert "preset slow is the best plan that was found" in said
    assert "preset broken was not tried: " in said
    assert "it needs a model of five blocks" in said
    assert plain(SLOW) < plain(FAST)
    fast = fisopt.tune(Denoiser(), f"{made.speed_up + 0.05:.2f}x", **GIVEN)
    assert fast.passes == {"transformer": [FAST]}
    assert fast.speed_up > made.speed_up + 0.05


def test_the_cheapest_preset_within_an_error_wins() -> None:
    slow, fast = plain(SLOW), plain(FAST)
    loose = fisopt.tune(Denoiser(), f"error<={min(0.99, 1.01 * fast):.6f}", **GIVEN)
    assert loose.passes == {"transformer": [FAST]}
    tight = fisopt.tune(Denoiser(), f"error<={(slow + fast) / 2:.6f}", **GIVEN)
    assert tight.passes == {"transformer": [SLOW]}
    none = fisopt.tune(Denoiser(), f"error<={0.5 * slow:.6f}", **GIVEN)
    assert none.reached
    assert none.passes == {"transformer": []}


def test_presets_are_kept_in_the_progress(tmp_path: Path) -> None:
    kept, seen = tmp_path / "measured.json", list[int]()
    made = fisopt.tune(Denoiser(), "1.2x", **GIVEN, progress=kept, seen=seen.append)
    assert seen
    names = [n for n in json.loads(kept.read_text())["prompts"]["1"] if n.startswith("preset slow")]
    assert len(names) == 1
    known = len(seen)
    again = fisopt.tune(Denoiser(), "1.2x", **GIVEN, progress=kept, seen=seen.append)
    assert again.passes == made.passes
    assert len(seen) == known


def test_presets_for_which_no_time_is_left_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pricing.Measured._found

    def late(self: Any, name: str, *rest: Any) -> float:
        if self.deadline < float("inf"):
            raise pricing.OutOfTimeError
        return found(self, name, *rest)

    monkeypatch.setattr(pricing.Measured, "_found", late)
    made = fisopt.tune(Denoiser(), "1.2x", **GIVEN)
    assert not made.reached
    assert any("may reach the target and were not measured: slow, fast" in n for n in made.notes)


def test_two_transformers_run_it_and_the_first_step_of_each_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = StepCache(steps="1:", blocks=":")
    for module in (presets, contenders, pricing, space_module):
        monkeypatch.setattr(module, "PRESETS", {"cache": ("", (cache,))})
    made = fisopt.tune(Denoiser(second=True), "1.2x", **{**GIVEN, "steps": 3})
    assert made.passes == {"transformer": [cache], "transformer_2": [cache]}
    assert made.speed_up == pytest.approx(1.5, rel=0.02)  # the last of three steps reuses
