"""Which transformers a diffusers pipeline has: one, or two that take turns by noise level."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fisopt.errors import InputError

COMPONENTS = ("transformer", "transformer_2")
"""Names of the transformers of a pipeline; Wan 2.2 A14B has both."""


def transformers_of(pipeline: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name.

    Raises:
        InputError: there is none.
    """
    held = {name: getattr(pipeline, name, None) for name in COMPONENTS}
    found = {name: module for name, module in held.items() if isinstance(module, nn.Module)}
    if not found:
        modules = sorted(n for n, v in _parts(pipeline).items() if isinstance(v, nn.Module))
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


def _parts(pipeline: Any) -> dict[str, Any]:
    held = getattr(pipeline, "components", None)
    if isinstance(held, Mapping):
        return dict(held)
    return dict(inspect.getmembers_static(pipeline, lambda v: isinstance(v, nn.Module)))
