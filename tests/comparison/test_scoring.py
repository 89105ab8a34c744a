from __future__ import annotations

import numpy as np
import pytest

from fisopt import InputError, OptionTypeError
from fisopt.comparison.scoring import check, measured, measures_of, scored, scorer_of
from fisopt.models.testbed import draw_clip, load_testbed, parse_prompt, to_frames


def test_testbed_has_a_scorer_of_its_own() -> None:
    pipe, prompt = load_testbed(), "red circle moving left fast over waves"
    clip = to_frames(draw_clip(parse_prompt(prompt), seed=1))
    assert isinstance(clip, np.ndarray)
    scorer = scorer_of(pipe, None)
    assert scorer is check
    assert scored(scorer, clip, prompt) == {
        "colour": 1, "shape": 1, "direction": 1, "right": 1,
    }  # fmt: skip
    assert scored(scorer, clip, "blue circle moving left fast over waves")["right"] == 0
    assert scorer_of(object(), None) is None
    assert scored(None, clip, prompt) == {}


def test_measures_are_functions_by_name() -> None:
    clip = np.zeros((2, 4, 4, 3), np.float32)
    found = measures_of({"off": lambda ours, dense: float(np.abs(ours - dense).max())})
    assert measured(found, clip + 0.5, clip) == {"off": 0.5}
    assert measures_of(None) == {}
    for given in ([len], {"off": 3}):
        with pytest.raises(OptionTypeError, match="functions by name"):
            measures_of(given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="finite"):
        measured({"off": lambda ours, dense: float("inf")}, clip, clip)
