"""Which step and which generation a call belongs to, from what a pipeline or a loop says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fisopt
from fisopt import FrameInterleave, ScheduleError
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.runtime.branches import Held, conditioning
from fisopt.runtime.generation import NOTES, Generation
from tests.zoo import zoo


def at(time: float) -> dict[str, Any]:
    return {"timestep": torch.tensor([time])}


def steps(generation: Generation, times: list[float]) -> list[int]:
    return [generation.step(at(t)).index for t in times]


def test_a_falling_timestep_counts_and_a_rise_starts_over() -> None:
    assert steps(Generation(), [900, 600, 300, 900, 600]) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("times", [[900, 600, 300], [0.0, 0.4, 0.8]])
def test_told_the_number_of_steps_either_direction_counts(times: list[float]) -> None:
    generation = Generation()
    for _ in range(2):
        with generation.generation(3):
            both_branches = [t for t in times for _ in range(2)]
            assert steps(generation, both_branches) == [0, 0, 1, 1, 2, 2]
            with pytest.raises(ScheduleError, match="this is step 4"):
                generation.step(at(1.2 if times[-1] < 1 else 1.0))


def test_a_named_branch_that_calls_a_step_again_starts_over() -> None:
    """A clip that was cut short at its first step leaves nothing to the next one."""
    generation = Generation()

    def call(index: int) -> dict[str, torch.Tensor]:
        with generation.context("cond", step_index=index, num_inference_steps=4):
            generation.step(at(900 - index))
            return generation.held("shape").state

    call(0)["match"] = torch.zeros(1)
    assert not call(0)
    call(0)["match"] = torch.ones(1)
    assert call(1)["match"] == 1


def test_unnamed_branches_of_one_step_hold_their_own() -> None:
    generation = Generation()
    for step, time in enumerate((900, 600)):
        for text in ("a boat", ""):
            found = visit(generation, time, text)
            assert found == (text if step else None)


def visit(generation: Generation, time: float, text: str, shape: str = "") -> str | None:
    """Call once without a name: leave the text, return what was left."""
    generation.step(at(time))
    held: Any = generation.held(shape, lambda: text)
    left = held.state.get("pass/text")
    generation.keep(held, {"pass/text": text})  # type: ignore[dict-item]
    return left  # type: ignore[no-any-return]


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("first", ["boat", "heron"])
def test_a_clip_that_was_cut_leaves_nothing(cut: int, first: str) -> None:
    """The same prompt and times again, or another prompt: no scheduler, no name, no step."""
    generation, times = Generation(), (900, 600, 300)
    for time in times[:cut]:
        visit(generation, time, first)
    assert visit(generation, times[0], "boat") is None
    assert [visit(generation, t, "boat") for t in times[1:]] == ["boat", "boat"]


def test_a_clip_that_was_cut_between_its_branches_leaves_nothing() -> None:
    generation = Generation()
    calls = [(900, "boat"), (900, ""), (600, "boat"), (900, "boat"), (900, "")]
    assert [visit(generation, *c) for c in calls] == [None, None, "boat", None, None]
    assert [visit(generation, 600, text) for text in ("boat", "")] == ["boat", ""]


def test_guidance_that_begins_later_takes_no_other_branch_s_state() -> None:
    generation = Generation()
    calls = [(900, "boat"), (600, ""), (600, "boat"), (300, ""), (300, "boat")]
    assert [visit(generation, *c) for c in calls] == [None, None, "boat", "", "boat"]


def test_after_the_last_step_nothing_is_held() -> None:
    """Else the memory of a clip's last step stays until the next clip."""
    generation = Generation(lambda: [900.0, 600.0, 300.0])
    for last, time in enumerate((900, 600, 300)):
        generation.step(at(time))
        generation.keep(generation.held("shape"), {"pass/what": torch.ones(1)})
        assert generation.holds == (last < 2)


def test_a_branch_that_paused_holds_nothing() -> None:
    generation = Generation()
    calls = [(900, "boat"), (900, ""), (600, "boat"), (300, "boat"), (300, "")]
    assert [visit(generation, *c) for c in calls] == [None, None, "boat", "boat", None]


def test_another_shape_or_another_number_of_steps_holds_nothing() -> None:
    generation = Generation()
    visit(generation, 900, "boat", "wide")
    assert visit(generation, 600, "boat", "tall") is None
    for index, count in ((0, 4), (1, 9)):
        with generation.context("cond", step_index=index, num_inference_steps=count):
            assert visit(generation, 900, "boat") is None


def test_passes_keep_what_others_leave() -> None:
    generation, one = Generation(), torch.ones(1)
    held = Held()
    generation.keep(held, {"first/a": one, "first/b": one, "second/a": one})
    generation.keep(held, {"first/c": one})
    assert list(held.state) == ["second/a", "first/c"], "what a pass left before is replaced whole"
    generation.keep(held, {}, {"first/change": 0.5})
    assert len(held.state) == 2
    generation.keep(held, {"first/d": one}, {"second/change": 0.25})
    assert held.measured == {"first/change": 0.5, "second/change": 0.25}


def test_conditioning_is_what_does_not_change_with_the_step() -> None:
    def of(**more: Any) -> Any:
        base = {
            "video": torch.randn(1, 4, 6),
            "timestep": torch.randint(1000, (1,)),
            "guidance": torch.rand(1),
            "text": torch.ones(1, 3, 2),
            "mask": torch.ones(1, 3, dtype=torch.bool),
        }
        return conditioning(Inputs.of(base | more), ["video"])

    assert of() == of()
    other = torch.ones(1, 3, 2)
    other[0, 0], other[0, 1] = 0.0, 2.0
    assert of() != of(text=other)
    assert of(text=other) != of(text=other.flip(1)), "the order of tokens counts"
    assert of(text=torch.ones(2, 3, 2)) == of(text=torch.ones(2, 3, 2).clone())
    assert of() != of(mask=torch.tensor([[True, True, False]]))
    assert of(label=torch.tensor([3])) != of(label=torch.tensor([4]))


def test_what_is_said_must_agree() -> None:
    generation = Generation()
    said = {"step_index": 0, "num_inference_steps": 7}
    disagree = pytest.raises(ScheduleError, match=r"num_steps=4.*num_inference_steps=7.*disagree")
    with generation.generation(4), generation.context("cond", **said), disagree:
        generation.step(at(900))
    late = pytest.raises(ScheduleError, match="says step 7; wanted 0 to 6")
    with generation.context("cond", step_index=7, num_inference_steps=7), late:
        generation.step(at(900))


def test_a_timestep_that_rises_is_not_counted_in_silence() -> None:
    generation = Generation()
    generation.step(at(0.0))
    generation.step(at(0.3))  # one rise is another clip
    with pytest.raises(ScheduleError, match=r"rises, to 0\.6 now.*open generation\(num_steps\)"):
        generation.step(at(0.6))


def test_steps_that_were_told_and_not_counted_are_a_line() -> None:
    generation = Generation()
    with generation.generation(4):
        steps(generation, [900, 900, 300])
    assert dict(generation.notes) == {
        "generation(num_steps=4) was left after 2 steps (calls with one timestep are one step)": 1
    }


def test_notes_are_bounded() -> None:
    generation = Generation()
    for i in range(2 * NOTES):
        generation.note(f"ran afresh at step {i}")
    assert len(generation.notes) == NOTES + 1
    assert sum(generation.notes.values()) == 2 * NOTES


class Pipe:
    """All that `optimize` asks of a pipeline."""

    def __init__(self) -> None:
        self.transformer = zoo()["wan"].model


@pytest.mark.usefixtures("captured_once")
@pytest.mark.xdist_group("wan")
def test_example_inputs_of_a_pipeline_are_captured_before_it_changes() -> None:
    pipe, inputs = Pipe(), zoo()["wan"].inputs(5, 3, 4)
    with pytest.raises(fisopt.PreconditionError, match="blocks='9:': 9 is outside"):
        fisopt.optimize(pipe, [FrameInterleave(blocks="9:")], inputs, backend="eager")
    assert pipe.transformer is zoo()["wan"].model
    fisopt.optimize(pipe, [FrameInterleave()], inputs, backend="eager")
    assert len(pipe.transformer.report.variants) == 1


def test_a_branch_without_a_name_and_with_fewer_layers_holds_its_own() -> None:
    """As guiders call it: the same text again, and a model that skips layers meanwhile."""
    generation = Generation(lambda: None)
    text = lambda: "a heron"  # noqa: E731
    with generation.generation(2):
        generation.step({"timestep": 900})
        for model in ("whole", "skips"):
            generation.keep(generation.held("shape", text, model), {"p/x": torch.ones(1)}, {})
        generation.step({"timestep": 500})
        assert all(generation.held("shape", text, model) for model in ("whole", "skips"))
