"""Record what a pipeline tells its transformer, once, for prompts by the hundred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fisopt.checked import checked, count, path_of
from fisopt.distill import prepared
from fisopt.distill.conditions import Conditions, Recorded, record
from fisopt.distill.levels import Levels
from fisopt.pipelines import one_of


@checked
def prepare(
    pipeline: Any,
    prompts: Sequence[str],
    folder: Path | str,
    *,
    steps: int = 4,
    arguments: Mapping[str, Any] | None = None,
    component: str | None = None,
    batch: int = 1,
    seen: Recorded = lambda _: None,
) -> Path:
    """Write what a pipeline tells its transformer for some prompts: text embeddings, sizes, levels.

    `consistency` and `sparse` take the folder in the place of the prompts; the pipeline then needs
    its transformer alone (``from_pretrained(..., text_encoder=None)``).

    Args:
        pipeline: a diffusers pipeline; it is left as it was.
        prompts: texts.
        folder: where; what was prepared there before is replaced.
        steps: of the student's sampler.
        arguments: more arguments of every call of the pipeline, such as the size of a clip, and
            guidance, without which one branch alone is recorded.
        component: of a pipeline with two transformers, the one to train.
        batch: prompts of one call, for a pipeline that takes lists.
        seen: called after every call with the number of prompts so far.

    Returns:
        The folder.

    Raises:
        InputError: there is no prompt, or what the transformer is told cannot be written.
        FileError: it cannot be written; what was there is unchanged.
    """
    count("distill: steps", steps)
    count("distill: batch", batch)
    place, component = path_of("distill: folder", folder), one_of(pipeline, component)
    conditions, levels, teacher = recorded(
        pipeline, component, prompts, steps, arguments or {}, batch, seen
    )
    prepared.write(place, teacher, conditions, levels)
    return place


def teacher_of(pipeline: Any, component: str) -> nn.Module:
    """The dense transformer of a pipeline."""
    held = getattr(pipeline, component)
    teacher: nn.Module = getattr(held, "original", held)
    return teacher


def recorded(
    pipeline: Any,
    component: str,
    prompts: Sequence[str] | Path | str,
    steps: int,
    arguments: Mapping[str, Any],
    batch: int = 1,
    seen: Recorded = lambda _: None,
) -> tuple[Conditions, Levels, nn.Module]:
    """What a pipeline tells its transformer, run or read, and the transformer as it was given."""
    held, teacher = getattr(pipeline, component), teacher_of(pipeline, component)
    if isinstance(prompts, (Path, str)):
        return *prepared.read(Path(prompts), teacher, steps), teacher
    setattr(pipeline, component, teacher)
    try:
        return *record(pipeline, teacher, prompts, steps, arguments, batch, seen), teacher
    finally:
        setattr(pipeline, component, held)
