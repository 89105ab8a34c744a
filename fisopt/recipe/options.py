"""Passes as plain values: their names, and their options as numbers, words and lists."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fisopt.errors import FisoptError, OptionTypeError, RecipeError, shown
from fisopt.nearest import did_you_mean
from fisopt.passes.presets import PRESETS
from fisopt.passes.tiling.mask_table import as_json, from_json
from fisopt.passes.tiling.masks import FrameMask
from fisopt.recipe.stores import KINDS, Store, stored
from fisopt.rewrite.pass_base import Pass


def known_passes() -> dict[str, type[Pass]]:
    """Every pass that this process has defined or imported, by the name that recipes give it.

    Passes of fisopt go by their class name; others by ``module.Class``.
    """
    every = _subclasses(Pass)  # type: ignore[type-abstract]
    return {_name(cls): cls for cls in every if not inspect.isabstract(cls)}


def _subclasses(cls: type[Pass]) -> Iterator[type[Pass]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _name(cls: type[Pass]) -> str:
    own = cls.__module__.partition(".")[0] == "fisopt"
    return cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"


def encode(pass_: Pass, store: Store) -> dict[str, Any]:
    """A pass as plain values.

    Raises:
        RecipeError: an option is of a type that a recipe cannot say.
    """
    if not dataclasses.is_dataclass(pass_):
        raise RecipeError(
            f"{_name(type(pass_))} cannot be part of a recipe: it is not a dataclass; write "
            "@dataclass(frozen=True) above the class"
        )
    options = {}
    for field in dataclasses.fields(pass_):
        if not field.init:
            continue
        try:
            options[field.name] = _encoded(getattr(pass_, field.name), store)
        except TypeError as error:
            raise RecipeError(
                f"option {field.name} of {_name(type(pass_))} cannot be part of a recipe: {error}"
            ) from error
    return {"name": _name(type(pass_)), "options": options}


def _encoded(value: Any, store: Store) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, FrameMask):
        said = as_json(value)
        named = said if isinstance(said, dict) else {"mask": "TileMask", "k": said}
        return {key: _encoded(item, store) for key, item in named.items()}
    for kind, cls in KINDS.items():
        if isinstance(value, cls):
            return {kind: store.put(kind, value)}
    if isinstance(value, (list, tuple)):
        return [_encoded(item, store) for item in value]
    raise OptionTypeError(
        f"{shown(value)} is a {type(value).__name__}; wanted numbers, strings, masks, schedules, "
        "mask tables, or lists of these"
    )


def decode(said: Any, store: Store, where: str) -> Pass:
    """The inverse of `encode`; no module is imported for it.

    Raises:
        RecipeError: the pass is not known here, or has no such option or value.
    """
    if not isinstance(said, Mapping) or set(said) != {"name", "options"}:
        raise RecipeError(
            f"{where}: got pass {shown(said)}, wanted {{name: NAME, options: {{...}}}}"
        )
    name, options = said["name"], said["options"]
    known = known_passes()
    if not isinstance(name, str) or name not in known:
        raise RecipeError(
            f"{where}: pass {shown(name)} is not known here; "
            f"{did_you_mean(name, [*known, *PRESETS])}a recipe imports nothing: import the module "
            "that defines the pass first; a preset is written as its passes. Known are "
            f"{', '.join(sorted(known))}"
        )
    if not isinstance(options, Mapping):
        raise RecipeError(f"{where}: got options {shown(options)} of {name}, wanted them by name")
    if paths := [k for k in _paths(known[name]) if isinstance(options.get(k), str)]:
        raise RecipeError(
            f"{where}: {name}.{paths[0]} names the file {shown(options[paths[0]])}; a recipe "
            "reads only files that were saved with it: give the pass in Python, or save the "
            "recipe again"
        )
    values = {str(k): _decoded(v, store, f"{where}, {name}.{k}") for k, v in options.items()}
    try:
        return known[name](**values)
    except (TypeError, ValueError, FisoptError) as error:
        raise RecipeError(f"{where}: {name} rejects its options: {error}") from error


def _paths(cls: type[Pass]) -> list[str]:
    """Options that may be the path of a file."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return [f.name for f in fields if re.search(r"\bPath\b", str(f.type))]


def _decoded(said: Any, store: Store, where: str) -> Any:
    if isinstance(said, list):
        return tuple(_decoded(item, store, where) for item in said)
    if not isinstance(said, Mapping):
        return said
    for kind in KINDS:
        if set(said) == {kind}:
            return stored(kind, said[kind], store, where)
    try:
        return from_json(said)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {shown(said)} is no mask: {error}") from error
