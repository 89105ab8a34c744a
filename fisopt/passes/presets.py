"""Named configurations: what `optimize(passes=["fis-a"])` means."""

from __future__ import annotations

from collections.abc import Sequence

from fisopt.errors import OptionError, OptionTypeError
from fisopt.nearest import did_you_mean
from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.rewrite.pass_base import Pass

PRESETS: dict[str, tuple[str, tuple[Pass, ...]]] = {
    "fis-a": (
        "FIS-DiT's form: every 2nd frame, two dense blocks at each end",
        (FrameInterleave(stride=2, first_block=2, last_block=-2),),
    ),
    "fis-b": (
        "FIS-DiT's form: every 3rd frame in every block, the first step dense",
        (FrameInterleave(stride=3, first_block=0, dense_steps=(0,)),),
    ),
    "fis-fast": (
        "ours: every 3rd frame, the first block dense",
        (FrameInterleave(stride=3),),
    ),
    "fis-balanced": (
        "ours: every 2nd frame, the first two blocks dense",
        (FrameInterleave(stride=2, first_block=2),),
    ),
    "fis-faithful": (
        "ours: only self-attention, queries of every 2nd frame against every key",
        (FrameInterleave(stride=2, first_block=0, kv="all", scope="attention"),),
    ),
}


def resolve(passes: Sequence[Pass | str]) -> tuple[Pass, ...]:
    """Turn preset names into passes.

    Raises:
        OptionError: an unknown name; the nearest known ones are given.
        OptionTypeError: something that is neither a pass nor a name.
    """
    result: list[Pass] = []
    if isinstance(passes, (str, Pass)):
        raise OptionTypeError(f"passes must be a list, got {passes!r}; write passes=[{passes!r}]")
    for item in passes:
        if isinstance(item, Pass):
            result.append(item)
        elif isinstance(item, str):
            result += _preset(item)
        else:
            form = f"; write {item.__name__}()" if isinstance(item, type) else ""
            raise OptionTypeError(
                f"passes must hold Pass objects or preset names, got {item!r} "
                f"({type(item).__name__}){form}"
            )
    return tuple(result)


def _preset(name: str) -> tuple[Pass, ...]:
    if name in PRESETS:
        return PRESETS[name][1]
    raise OptionError(
        f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}Presets are {sorted(PRESETS)}; "
        "a pass is given as an object, not as text: passes=[fisopt.FrameInterleave(stride=2)]"
    )
