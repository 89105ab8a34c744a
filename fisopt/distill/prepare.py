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
from fisopt.errors import InputError
from fisopt.pipelines import one_of, transformers_of


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
    """Write the inputs that a pipeline gives its transformer for some prompts.

    These are text embeddings, sizes and noise levels. `consistency` and `sparse` take the folder
    instead of prompts. The pipeline then needs only its transformer
    (``from_pretrained(..., text_encoder=None)``).

    Args:
        pipeline: a diffusers pipeline; `prepare` leaves it as it was.
        prompts: texts.
        folder: where to write; `prepare` replaces what it wrote there before.
        steps: steps of the student's sampler.
        arguments: more arguments of every call of the pipeline, such as the size of a clip, and
            guidance. Without guidance `prepare` records one branch only.
        component: the transformer to train, of a pipeline that has two and runs one at all noise
            levels; two that take turns by noise level (Wan 2.2 A14B) are not trained.
        batch: number of prompts in one call, for a pipeline that takes lists.
        seen: called after every call with the number of prompts so far.

    Returns:
        The folder.

    Raises:
        InputError: there is no prompt, an input of the transformer cannot be written, or two
            transformers take turns by noise level.
        FileError: the folder cannot be written; existing files stay unchanged.
    """
    count("distill: steps", steps)
    count("distill: batch", batch)
    place, component = path_of("distill: folder", folder), one_of(pipeline, component)
    conditions, levels, teacher = recorded(
        pipeline, component, prompts, steps, arguments or {}, batch, seen
    )
    prepared.write(place, teacher, conditions, levels, pipeline, arguments or {})
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
    """What a pipeline tells its transformer, run or read, and the transformer as it was given.

    Raises:
        InputError: two transformers take turns by noise level; or see `record` and `read`.
    """
    boundary = getattr(getattr(pipeline, "config", None), "boundary_ratio", None)
    if len(transformers_of(pipeline)) > 1 and boundary is not None:
        raise InputError(
            f"distill: {component} of {type(pipeline).__name__} runs on one side of "
            f"boundary_ratio={boundary} only, and training would take it through all noise levels; "
            "wanted a pipeline of one transformer, such as one of Wan 2.1"
        )
    held, teacher = getattr(pipeline, component), teacher_of(pipeline, component)
    if isinstance(prompts, (Path, str)):
        return *prepared.read(Path(prompts), teacher, steps, pipeline, arguments), teacher
    setattr(pipeline, component, teacher)
    try:
        return *record(pipeline, teacher, prompts, steps, arguments, batch, seen), teacher
    finally:
        setattr(pipeline, component, held)
