"""Which transformers a diffusers pipeline has: one, or two that take turns by noise level."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn

from fisopt.errors import InputError

COMPONENTS = ("transformer", "transformer_2")
"""Names of the transformers of a pipeline; Wan 2.2 A14B has both."""


class SchedulerOf:
    """The scheduler of a pipeline, whichever it has when it is asked.

    A copy of the pipeline has its own; what is sent elsewhere without the pipeline takes the
    scheduler along.

    Args:
        pipeline: the pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self) -> Any:
        """The scheduler, None if there is none."""
        return getattr(self.pipeline, "scheduler", None)

    def __deepcopy__(self, memo: dict[int, Any]) -> SchedulerOf:
        return SchedulerOf(memo.get(id(self.pipeline), self.pipeline))

    def __reduce__(self) -> tuple[Any, ...]:
        holder = SimpleNamespace(scheduler=getattr(self.pipeline, "scheduler", None))
        return SchedulerOf, (holder,)


def transformers_of(pipeline: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name.

    Raises:
        InputError: there is none.
    """
    held = {name: getattr(pipeline, name, None) for name in COMPONENTS}
    found = {name: module for name, module in held.items() if isinstance(module, nn.Module)}
    if not found:
        modules = sorted(modules_of(pipeline))
        raise InputError(
            f"{type(pipeline).__name__} has no transformer to optimise; it holds "
            f"{modules or 'no modules'}. Wanted an nn.Module or a pipeline with `transformer`"
        )
    return found


def one_of(pipeline: Any, component: str | None) -> str:
    """The name of the transformer that is meant: the given one, or the only one.

    Raises:
        InputError: it has none of this name, or several and none is given.
    """
    names = list(transformers_of(pipeline))
    if component is None and len(names) == 1:
        return names[0]
    if component not in names:
        raise InputError(
            f"{type(pipeline).__name__} has {' and '.join(names)}; got component={component!r}, "
            "wanted one of them (--component)"
        )
    return component


def by_component(given: object) -> bool:
    """Whether something is given for each transformer by its name."""
    return isinstance(given, Mapping) and bool(given) and set(given) <= set(COMPONENTS)


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The modules that a pipeline is made of, by name."""
    held = getattr(pipeline, "components", None)
    if not isinstance(held, Mapping):
        held = dict(inspect.getmembers_static(pipeline))
    return {name: part for name, part in held.items() if isinstance(part, nn.Module)}
