"""The configurations that are compared: passes, recipes, or other libraries' methods, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fisopt.api import optimize
from fisopt.codegen.compile import Backend
from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.page.data import DENSE
from fisopt.passes.presets import resolve
from fisopt.pipelines import by_component, transformers_of
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass
from fisopt.runtime.optimized import OptimizedModule

Method = Callable[[Any], AbstractContextManager[object]]
"""Given a pipeline, a context inside of which it runs another way."""
Configuration = str | Path | Pass | Recipe | Sequence[Pass | str] | Mapping[str, Any] | Method
"""A preset's name or "dense", a recipe or its path, passes, or a method of another library."""
RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Ready:
    """A configuration that can run.

    Attributes:
        name: its name.
        modules: the transformers that take the place of the pipeline's, by component.
        method: the context that the pipeline runs inside of.
    """

    name: str
    modules: Mapping[str, nn.Module]
    method: Method = nullcontext

    @property
    def optimised(self) -> dict[str, OptimizedModule]:
        """Those of its transformers that fisopt has made."""
        found = self.modules.items()
        return {name: m for name, m in found if isinstance(m, OptimizedModule)}

    @property
    def said(self) -> tuple[str, str]:
        """What makes the same again, in Python, and what each pass did; both in words."""
        modules = self.optimised
        if not modules:
            return "", ""
        first, *others = (list(module.passes) for module in modules.values())
        each = {name: list(module.passes) for name, module in modules.items()}
        passes = first if all(other == first for other in others) else each
        options = next(iter(modules.values())).options
        kernels = {"linear": options.linear, "attention": options.attention}
        more = "".join(f", {k}={v!r}" for k, v in kernels.items() if v is not None)
        reports = "\n".join(str(module.report) for module in modules.values())
        return f"fisopt.optimize(pipe, passes={passes!r}{more})", reports

    @contextmanager
    def running(self, pipeline: Any) -> Iterator[None]:
        """Inside, the pipeline runs this configuration; then it is as it was."""
        held = transformers_of(pipeline)
        try:
            for name, module in self.modules.items():
                setattr(pipeline, name, module)
            with self.method(pipeline):
                yield
        finally:
            for name, module in held.items():
                setattr(pipeline, name, module)


def named(given: object) -> dict[str, Any]:
    """Configurations by name, `DENSE` the first of them.

    Raises:
        OptionError: one is there twice.
        OptionTypeError: they are no list of names and no mapping.
    """
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, (list, tuple)) and all(isinstance(x, (str, Path)) for x in given):
        found = {_name(x): x for x in given}
        if len(found) < len(given):
            raise OptionError(f"configs: got one twice in {shown(given)}; give each once")
    else:
        raise OptionTypeError(
            f"configs: got {shown(given)}, wanted a list of presets and paths of recipes, or "
            "configurations by name, such as {'mine': [fisopt.FrameInterleave(stride=2)]}"
        )
    found.pop(DENSE, None)
    return {DENSE: (), **found}


def _name(given: str | Path) -> str:
    return Path(given).stem if _is_path(given) else str(given)


def _is_path(given: object) -> bool:
    return isinstance(given, Path) or (isinstance(given, str) and given.endswith(RECIPES))


def ready(
    pipeline: Any, name: str, given: Any, backend: Backend, base: Mapping[str, nn.Module]
) -> Ready:
    """Prepare a configuration.

    Args:
        pipeline: a pipeline with its own transformers, left as it was.
        name: its name.
        given: what it is.
        backend: who compiles.
        base: transformers by component, the pipeline's own or optimised ones, whose captures are
            used again.

    Raises:
        OptionError, RecipeError, InputError: see `fisopt.optimize`.
    """
    held = transformers_of(pipeline)
    if callable(given) and not isinstance(given, Pass):
        return Ready(name, held, given)
    wanted: dict[str, Any] = _wanted(given)
    try:
        for component, module in base.items():
            setattr(pipeline, component, module)
        optimize(pipeline, backend=backend, **wanted)
        return Ready(name, transformers_of(pipeline))
    finally:
        for component, module in held.items():
            setattr(pipeline, component, module)


def _wanted(given: Any) -> dict[str, Any]:
    """How `optimize` is told of a configuration."""
    if isinstance(given, Recipe) or _is_path(given):
        return {"recipe": given}
    if isinstance(given, (str, Pass)):
        return {"passes": resolve([given])}
    if isinstance(given, Mapping) and (not by_component(given) or _holds_recipes(given)):
        return {"recipe": given}
    return {"passes": given}


def _holds_recipes(given: Mapping[str, Any]) -> bool:
    return any(isinstance(x, (Recipe, Mapping)) or _is_path(x) for x in given.values())
