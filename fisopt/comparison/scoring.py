"""Whether a clip shows what was asked: scorers, the testbed's own among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fisopt.errors import InputError, OptionTypeError, shown

Scorer = Callable[[np.ndarray, str], float | Mapping[str, float]]
"""Of a clip [frames, height, width, 3] in [0, 1] and its prompt: a number, or several by name."""
Measure = Callable[[np.ndarray, np.ndarray], float]
"""Of a clip [frames, height, width, 3] in [0, 1] and the dense one: a number."""
CHECKED = ("colour", "shape", "direction", "right")


def check(clip: np.ndarray, prompt: str) -> dict[str, float]:
    """What of a testbed's clip is right, 1 or 0 each, and whether all three are."""
    from fisopt.models.testbed import check_clip

    found = check_clip(clip, prompt)
    return {name: float(getattr(found, name)) for name in CHECKED}


def scorer_of(pipeline: Any, given: Scorer | None) -> Scorer | None:
    """The given scorer, or that of the pipeline's own."""
    if given is not None and not callable(given):
        raise OptionTypeError(f"scorer: got {shown(given)}, wanted a function of clip and prompt")
    from fisopt.models.testbed import TestbedPipeline  # diffusers: seconds to import

    own = check if isinstance(pipeline, TestbedPipeline) else None
    return own if given is None else given


def scored(scorer: Scorer | None, clip: np.ndarray, prompt: str) -> dict[str, float]:
    """What a scorer says of a clip, by name.

    Raises:
        OptionTypeError: it says no numbers.
        InputError: it says one that is not finite.
    """
    if scorer is None:
        return {}
    said = scorer(clip, prompt)
    try:
        named = said.items() if isinstance(said, Mapping) else [("score", said)]
        found = {str(name): float(value) for name, value in named}
    except (TypeError, ValueError) as error:
        raise OptionTypeError(
            f"scorer: got {shown(said)}, wanted a number, or numbers by name"
        ) from error
    return _finite("scorer", found)


def measures_of(given: Mapping[str, Measure] | None) -> dict[str, Measure]:
    """Measures by name, checked.

    Raises:
        OptionTypeError: they are no functions by name.
    """
    found = {} if given is None else given
    if not isinstance(found, Mapping) or not all(map(callable, found.values())):
        raise OptionTypeError(f"measures: got {shown(given)}, wanted functions by name")
    return {str(name): measure for name, measure in found.items()}


def measured(
    measures: Mapping[str, Measure], clip: np.ndarray, dense: np.ndarray
) -> dict[str, float]:
    """What measures say of a clip beside the dense one, by name.

    Raises:
        InputError: one says a number that is not finite.
    """
    return _finite("measures", {name: float(f(clip, dense)) for name, f in measures.items()})


def _finite(what: str, found: dict[str, float]) -> dict[str, float]:
    if not all(map(math.isfinite, found.values())):
        raise InputError(f"{what}: got {shown(found)} of a clip, wanted finite numbers")
    return found


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as whole numbers from 0 to 255."""
    return (255 * frames.clip(0, 1)).round().astype(np.uint8)
