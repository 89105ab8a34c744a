"""The state of a model that a captured graph depends on, compared at every call.

Weights are not part of it: a graph reads them from the model.  Their names, shapes, types and
devices are, and everything else that a module holds: its layers, hooks, adapters, attention
processors, plain attributes, what its classes define and what functions close over.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.rewrite.tools.tool import tools
from fisopt.rewrite.tracing.inner import inner_form
from fisopt.runtime.differences import changes, equal, form_text
from fisopt.runtime.seen import PLAIN, SEQUENCES, VALUES, Seen, mark, root_own


class Fingerprint:
    """The state of a model at one time.

    Args:
        model: the model; its state is read now.

    Attributes:
        hidden: the modules that it reaches, but not as layers, by path.
        adapters: the names of the adapters that act on each layer that has some, by path.
    """

    def __init__(self, model: nn.Module) -> None:
        seen = Seen()
        if (registry := _attention_backends()) is not None:
            seen.kind(registry)
        seen.model(model)
        self.hidden = seen.hidden
        self.adapters = {
            path: names
            for tool in tools()
            for path, module in model.named_modules()
            if (names := tool.acting(module))
        }
        self._parts = seen.parts
        self._root = seen.containers.pop("")
        self._root_kept = dict(self._root)
        self._root_own = root_own(model)
        self._paths = list(seen.containers)
        self._live = list(seen.containers.values())
        self._kept = [_copied(live) for live in self._live]
        self._empty = seen.empty
        self._places = list(seen.places)
        self._holders, self._keys, self._values = (
            [list(part) for part in zip(*seen.places.values(), strict=True)]
            if seen.places
            else ([], [], [])
        )
        self._objects = seen.objects
        self._classes = [*map(type, self._objects.values())]
        self._weights = list(seen.weights.values())
        self._names = [*map(tuple, self._weights)]
        tensors = self._tensors()
        plain = all(type(x) in (Tensor, nn.Parameter) for x in tensors)
        self._mark: Any = Tensor.data_ptr if plain else mark
        self._marks = self._marked()
        self._forms = _forms(seen.weights)

    def holds(self) -> bool:
        """Whether nothing has changed since; not to be trusted for weights on the meta device."""
        try:
            return (
                self._live == self._kept
                and self._root == self._root_kept
                and not any(self._empty)
                and [*map(type, self._objects.values())] == self._classes
                and all(
                    map(
                        operator.is_, map(operator.getitem, self._holders, self._keys), self._values
                    )
                )
                and [*map(tuple, self._weights)] == self._names
                and self._marked() == self._marks
            )
        except Exception:  # whatever an exchanged object answers, it is another one
            return False

    def _tensors(self) -> list[Any]:
        return [x for x in chain.from_iterable(map(dict.values, self._weights)) if x is not None]

    def _marked(self) -> list[Any]:
        """What changes where a weight is another one, without asking classes of tensors."""
        with torch._C.DisableTorchFunctionSubclass():
            return [*map(self._mark, self._tensors())]

    def take(self, other: Fingerprint) -> None:
        """Be what another is, and stay the same object."""
        vars(self).update(vars(other))

    def same(self, other: Fingerprint) -> bool:
        """Whether a graph that was captured in one state is that of the other."""
        if self._forms != other._forms or self._paths != other._paths:
            return False
        return next(self._differences(other), None) is None

    def difference(self, before: Fingerprint) -> str:
        """What is not as it was, in words."""
        found = list(dict.fromkeys(self._differences(before)))
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return ("; ".join(found[:3]) or "nothing") + more

    def _differences(self, before: Fingerprint) -> Iterator[str]:
        mine = dict(zip(self._paths, self._kept, strict=True)) | {"": self._core}
        theirs = dict(zip(before._paths, before._kept, strict=True)) | {"": before._core}
        for path in dict.fromkeys((*theirs, *mine)):
            if path in theirs and path in mine:
                parts = self._parts.get(path, set()) & before._parts.get(path, set())
                yield from changes(path, theirs[path], mine[path], parts)
            elif not path.startswith("class "):
                yield f"{path} is {'new' if path in mine else 'gone'}"
        for path in dict.fromkeys((*before._forms, *self._forms)):
            old, new = before._forms.get(path), self._forms.get(path)
            if old != new:
                yield f"{path} was {form_text(old)}, is {form_text(new)}"
        was = dict(zip(before._objects, before._classes, strict=True))
        for path, cls in zip(self._objects, self._classes, strict=True):
            if was.get(path, cls) is not cls:
                yield f"{path or 'the model'} was a {was[path].__name__}, is a {cls.__name__}"
        held = dict(zip(before._places, before._values, strict=True))
        for path, value in zip(self._places, self._values, strict=True):
            old = held.get(path, value)
            if isinstance(value, (dict, *SEQUENCES, *VALUES)):
                continue  # their contents were compared
            if old is not value and not (isinstance(value, PLAIN) and equal(old, value)):
                yield f"{path} was exchanged"

    @property
    def _core(self) -> dict[str, Any]:
        """What the model itself holds that a graph may depend on."""
        return {k: v for k, v in self._root_kept.items() if k not in self._root_own}


def _attention_backends() -> type | None:
    """Where diffusers keeps the attention backend of the moment, once it is imported."""
    module = sys.modules.get("diffusers.models.attention_dispatch")
    registry = getattr(module, "_AttentionBackendRegistry", None)
    return registry if isinstance(registry, type) else None


def _copied(container: Any) -> Any:
    """A shallow copy that compares equal."""
    if isinstance(container, (Mapping, MappingProxyType)):
        return dict(container)
    return copy.copy(container)


def _forms(weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Type, shape, dtype and device of each weight by path, which are one tensor, and of what.

    In the place of a parameter a plain tensor counts as one: functional calls put it there.
    """
    first: dict[int, str] = {}
    forms: dict[str, Any] = {}
    for place, held in weights.items():
        owner = place.rpartition("_parameters" if place.endswith("_parameters") else "_buffers")[0]
        for name, x in held.items():
            path = owner + name
            alias = first.setdefault(id(x), path)
            kind = nn.Parameter if type(x) is Tensor and "_parameters" in place else type(x)
            forms[path] = (
                None if x is None else (kind, x.shape, x.dtype, x.device, alias, *inner_form(x))
            )
    return forms
