"""Named configurations: what `optimize(passes=["fis-a"])` means."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.nearest import did_you_mean
from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.guidance_parallel import GuidanceParallel
from fisopt.passes.reduction.published_reductions import published_reduction
from fisopt.passes.sequence_parallel import SequenceParallel
from fisopt.passes.step_cache import StepCache
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.pass_base import Pass

PASSES: dict[str, type[Pass]] = {
    cls.__name__: cls
    for cls in (
        *(FrameInterleave, TokenReduction, TileAttention, StepCache),
        *(GuidanceParallel, SequenceParallel),
    )
}
"""The passes that text can name."""
MAKERS: Mapping[str, Callable[..., Pass]] = {**PASSES, "published_reduction": published_reduction}
"""The passes, and the functions that make one, that text can call."""

PRESETS: dict[str, tuple[str, tuple[Pass, ...]]] = {
    "fis-a": (
        "FIS-DiT's form: every 2nd frame, two dense blocks at each end",
        (FrameInterleave(stride=2, blocks="2:-2"),),
    ),
    "fis-paper-b": (
        "FIS-DiT's form, loses the clip: every 3rd frame in every block, the first step dense",
        (FrameInterleave(stride=3, blocks=":", steps="1:"),),
    ),
    "fis-fast": (
        "ours: every 3rd frame, the first block dense",
        (FrameInterleave(stride=3),),
    ),
    "fis-balanced": (
        "ours: every 2nd frame, the first two blocks dense",
        (FrameInterleave(stride=2, blocks="2:"),),
    ),
    "fis-faithful": (
        "ours: only self-attention, queries of every 2nd frame against every key",
        (FrameInterleave(stride=2, blocks=":", kv="all", scope="attention"),),
    ),
    "few-faithful": (
        "few steps: as fis-faithful, and the anchors rotate from step to step",
        (FrameInterleave(stride=2, blocks=":", kv="all", scope="attention", rotate="steps"),),
    ),
    "few-balanced": (
        "few steps: every 2nd frame against every key, anchors rotate from step to step",
        (FrameInterleave(stride=2, kv="all", rotate="steps"),),
    ),
    "few-fast": (
        "few steps: every 2nd frame, anchors rotate from step to step",
        (FrameInterleave(stride=2, rotate="steps"),),
    ),
    "many-faithful": (
        "many steps: every 2nd forecasts what its blocks would add, the last two never",
        (StepCache(steps="1:-2:2", order=1, blocks=":"),),
    ),
    "many-balanced": (
        "many steps: two of three forecast what their blocks would add, the last two never",
        (StepCache(steps="1:-2:3,2:-2:3", order=1, blocks=":"),),
    ),
    "many-fast": (
        "many steps: three of four forecast what their blocks would add, the last two never",
        (StepCache(steps="1:-2:4,2:-2:4,3:-2:4", order=1, blocks=":"),),
    ),
}
RENAMED = {"fis-b": "fis-paper-b"}
"""Names that presets had."""
PAPER = "paper"
"""In the name of a preset that is published and loses the testbed's clips."""


def resolve(passes: Sequence[Pass | str]) -> tuple[Pass, ...]:
    """Turn preset names into passes.

    Raises:
        OptionError: an unknown name, of which the nearest known ones are given, or a pass twice.
        OptionTypeError: something that is neither a pass nor a name, or no list of these.
    """
    if not isinstance(passes, Sequence) or isinstance(passes, (str, bytes)):
        one = f"; write passes=[{shown(passes)}]" if isinstance(passes, (str, Pass)) else ""
        raise OptionTypeError(f"passes must be a list, got {_typed(passes)}{one}")
    result: list[Pass] = []
    for item in passes:
        if isinstance(item, Pass):
            result.append(item)
        elif isinstance(item, str):
            result += _preset(item)
        else:
            raise OptionTypeError(
                f"passes must hold Pass objects or preset names, got {_typed(item)}{_form(item)}"
            )
    for each in result:
        if each.stage is not None and result.count(each) > 1:
            raise OptionError(
                f"{shown(each)} is given twice, but edits a block only once; give it once"
            )
    if len(caches := [each for each in result if each.stage == "steps"]) > 1:
        raise OptionError(
            f"{shown(caches[1])} comes after another step cache, but only one can decide about "
            "reuse; give one, whose blocks= may name several parts"
        )
    return tuple(result)


def unknown(name: str) -> str:
    """What an error says of a name that is neither a pass nor a preset."""
    return (
        f"unknown pass or preset {shown(name)}; {did_you_mean(name, [*MAKERS, *PRESETS])}"
        f"Passes are {', '.join(MAKERS)}; presets are {', '.join(PRESETS)}"
    )


def _preset(name: str) -> tuple[Pass, ...]:
    name = RENAMED.get(name, name)
    if PAPER in name and name in PRESETS:
        warnings.warn(
            f"preset {name}: {PRESETS[name][0]}; on the testbed no clip shows its prompt",
            stacklevel=4,
        )
    if name in PRESETS:
        return PRESETS[name][1]
    called, _, options = name.strip().partition("(")
    if called in MAKERS:
        form = f"fisopt.{called}({options or ')'}"
        raise OptionError(
            f"got {name!r}: give a pass as an object, not as text; write passes=[{form}]"
        )
    raise OptionError(
        f"{unknown(called)}. Give a pass as an object, not as text: "
        "passes=[fisopt.FrameInterleave(stride=2)]"
    )


def _form(item: Any) -> str:
    """How to write what was meant, where that is plain."""
    if isinstance(item, type) and issubclass(item, Pass):
        return f"; write {item.__name__}()"
    return "; write one list" if isinstance(item, (list, tuple)) else ""


def _typed(value: object) -> str:
    return f"{shown(value)} ({type(value).__name__})"
