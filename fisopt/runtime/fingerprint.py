"""The state of a model that a captured graph depends on, compared at every call.

Weights are not part of it: a graph reads them from the model.  Their names, shapes, types and
devices are, and everything else that a module holds: its layers, hooks, adapters, attention
processors, plain attributes, what its classes define and what functions close over.
"""

from __future__ import annotations

import copy
import copyreg
import operator
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fisopt.rewrite.readiness import GLOBAL_HOOKS, HOOKS, ROOT_HOOK
from fisopt.runtime.reach import FUNCTIONS, parts

_OWN = frozenset(vars(nn.Module()))
_PLAIN = (str, bytes, int, float, complex)
_ATOMS = (nn.Module, type, ModuleType, *_PLAIN)
_SEQUENCES = (list, tuple, deque)
_VALUES = (set, bytearray, array)
_OPAQUE = {"builtins", "torch", "threading", "_thread", "logging", "functools", "typing", "weakref"}
_DEPTH = 12
_REGISTRY = "_diffusers_hook"
"""Where diffusers keeps its hooks; a graph is captured only where it holds none."""
_WITHOUT_EFFECT = {_REGISTRY, "_class_name", "_diffusers_version", "_name_or_path"}
"""The registry, and what saving writes into a config."""


class _Values(tuple[Any, ...]):
    """What a watched thing was; the name of its class comes first."""

    def __repr__(self) -> str:
        return str(self[0])


@dataclass(frozen=True, eq=False)
class _Watched:
    """Something that is compared by what is read of it.

    Attributes:
        of: the thing.
        read: reads it.
    """

    of: Any
    read: Callable[[Any], tuple[Any, ...]]

    def __copy__(self) -> _Values:
        return _Values((type(self.of).__name__, *self.read(self.of)))

    def __eq__(self, kept: object) -> bool:
        return self.__copy__() == kept

    __hash__ = None  # type: ignore[assignment]


@dataclass
class _Seen:
    """What was found on the way through a model: containers with copies, places, weights."""

    containers: dict[str, Any] = field(default_factory=dict)
    empty: list[Any] = field(default_factory=list)
    places: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    classes: dict[type, None] = field(default_factory=dict)
    hidden: dict[str, nn.Module] = field(default_factory=dict)
    _ids: set[int] = field(default_factory=set)
    _modules: set[int] = field(default_factory=set)

    def model(self, model: nn.Module) -> None:
        """Look through a model, its classes and torch's hooks for every module."""
        self._modules.update(map(id, model.modules()))
        for path, module in model.named_modules():
            self.module(path, module, is_root=module is model)
        known: set[type] = set()
        while found := [cls for cls in self.classes if cls not in known]:
            known.update(found)
            for cls in found:
                self.cls(cls)
        for name in GLOBAL_HOOKS:
            self.empty.append(getattr(nn.modules.module, name))
        for name, value in vars(nn.functional).items():
            if callable(value):
                self.place("torch.nn.functional", vars(nn.functional), name)

    def module(self, path: str, module: nn.Module, *, is_root: bool) -> None:
        """Look at one module; the hooks of the whole model run around the graph."""
        held, prefix = vars(module), f"{path}." if path else ""
        self.containers[path] = held
        self.objects[path] = module
        self.kind(type(module))
        for name in ("_modules", *(() if is_root else HOOKS)):
            if held[name]:
                self.containers[f"{prefix}{name.strip('_')}"] = held[name]
                for key, hook in held[name].items():
                    self.inside(f"{prefix}{name.strip('_')}.{key}", held[name], key, hook, _DEPTH)
            else:
                self.empty.append(held[name])
        for name in ("_parameters", "_buffers"):
            if held[name]:
                self.weights[f"{prefix}{name}"] = held[name]
            else:
                self.empty.append(held[name])
        for name, value in held.items():
            if name not in _OWN and name != _REGISTRY and not (is_root and name in ROOT_HOOK):
                self.inside(f"{prefix}{name}", held, name, value, _DEPTH)

    def kind(self, cls: type) -> None:
        """Take note of a class and of those that it inherits from.

        What Python fills into a class when one is first copied or asked is filled in now.
        """
        for base in cls.__mro__:
            if base is not nn.Module and _root(base) not in ("builtins", "functools"):
                copyreg._slotnames(base)  # type: ignore[attr-defined]
                getattr(base, "__annotations__", None)
                self.classes[base] = None

    def cls(self, cls: type) -> None:
        """Look at what a class defines, holds, and reads from its module."""
        name = f"class {cls.__module__}.{cls.__qualname__}"
        self.containers[name] = vars(cls)
        if cls.__module__.partition(".")[0] != "torch":
            for key, value in list(vars(cls).items()):
                if isinstance(value, FunctionType):
                    self.function(f"{name}.{key}", value, _DEPTH)
            self.shared(name, vars(cls))

    def shared(self, path: str, held: Mapping[Any, Any]) -> None:
        """Look into the data that a class holds for all that are of it."""
        for name, value in list(held.items()):
            if isinstance(value, (dict, list, *_VALUES)) and self.enter(f"{path}.{name}", value):
                if isinstance(value, dict):
                    self.shared(f"{path}.{name}", value)
            elif isinstance(value, np.ndarray):
                self.enter(f"{path}.{name}", value, _Watched(value, _numbers))

    def read_by(self, function: FunctionType, depth: int) -> None:
        """Take note of what a function reads from its module, and look into data among it."""
        module, held = function.__module__ or "", function.__globals__
        for name in function.__code__.co_names:
            if name in held:
                self.place(module, held, name)
                if not isinstance(held[name], FUNCTIONS):
                    self.inside(f"{module}.{name}", held, name, held[name], depth - 1)

    def place(self, path: str, holder: Any, key: Any) -> None:
        """Take note of the very object that a container holds at a key."""
        self.places[f"{path}.{key}"] = (holder, key, holder[key])

    def inside(self, path: str, holder: Any, key: Any, value: Any, depth: int) -> None:
        """Look into what an attribute holds, as far as its contents can change."""
        if isinstance(value, Tensor):
            self.places[path] = (holder, key, value)
        if isinstance(value, nn.Module) and id(value) not in self._modules:
            self.beside(path, value)
        if value is None or depth == 0 or isinstance(value, (Tensor, *_ATOMS)):
            return
        if isinstance(value, np.ndarray):
            self.places[path] = (holder, key, value)
            self.enter(path, value, _Watched(value, _numbers))
        elif isinstance(value, FUNCTIONS):
            self.function(path, value, depth)
        elif isinstance(value, (dict, *_SEQUENCES)):
            self.places[path] = (holder, key, value)
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            if self.enter(path, value):
                for name, part in list(pairs):
                    self.inside(f"{path}[{name!r}]", value, name, part, depth - 1)
        elif isinstance(value, _VALUES):
            self.places[path] = (holder, key, value)
            self.enter(path, value)
        elif _root(type(value)) not in _OPAQUE:
            self.object(path, value, depth)

    def beside(self, path: str, value: nn.Module) -> None:
        """Look through a module that a list, a dict or an object holds and that is no layer.

        A graph holds the weights of such modules itself.
        """
        for name, module in value.named_modules(prefix=path):
            if id(module) in self._modules:
                continue
            self._modules.add(id(module))
            self.hidden[name] = module
            self.module(name, module, is_root=False)
            for kind in ("_parameters", "_buffers"):
                held = self.weights.pop(f"{name}.{kind}", {})
                self.containers[f"{name}.{kind}"] = held
                for key, x in held.items():
                    if x is not None:
                        self.containers[f"{name}.{key}"] = _Watched(x, _storage)

    def function(self, path: str, value: Any, depth: int) -> None:
        """Look into a function: its closure, defaults, attributes, and what it reads by name."""
        if not self.enter(path, value, ()):
            return
        if isinstance(value, FunctionType):
            if _root(value) in _OPAQUE:
                return
            self.read_by(value, depth)
        self.object(path, value, depth)

    def object(self, path: str, value: Any, depth: int) -> None:
        """Look into what an object holds, in a dict or elsewhere."""
        if isinstance(held := getattr(value, "__dict__", None), dict):
            self.kind(type(value))
            if self.enter(path, held):
                self.objects[path] = value
                for name, part in list(held.items()):
                    self.inside(f"{path}.{name}", held, name, part, depth - 1)
        for name, holder, key in parts(value):
            self.places[f"{path}.{name}"] = (holder, key, holder[key])
            self.inside(f"{path}.{name}", holder, key, holder[key], depth - 1)

    def enter(self, path: str, value: Any, contents: Any = None) -> bool:
        """Take note of a container, once; of its contents, where those are compared otherwise."""
        if id(value) in self._ids:
            return False
        self._ids.add(id(value))
        if contents != ():
            self.containers[path] = value if contents is None else contents
        return True


class Fingerprint:
    """The state of a model at one time.

    Args:
        model: the model; its state is read now.

    Attributes:
        hidden: the modules that it reaches, but not as layers, by path.
    """

    def __init__(self, model: nn.Module) -> None:
        seen = _Seen()
        if (registry := _attention_backends()) is not None:
            seen.kind(registry)
        seen.model(model)
        self.hidden = seen.hidden
        self._root = seen.containers.pop("")
        self._root_kept = dict(self._root)
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
        self._mark: Any = Tensor.data_ptr if plain else _mark
        self._marks = [*map(self._mark, tensors)]
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
                and [*map(self._mark, self._tensors())] == self._marks
            )
        except Exception:  # whatever an exchanged object answers, it is another one
            return False

    def _tensors(self) -> list[Any]:
        return [x for x in chain.from_iterable(map(dict.values, self._weights)) if x is not None]

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
                yield from _changes(path, theirs[path], mine[path])
            elif not path.startswith("class "):
                yield f"{path} is {'new' if path in mine else 'gone'}"
        for path in dict.fromkeys((*before._forms, *self._forms)):
            old, new = before._forms.get(path), self._forms.get(path)
            if old != new:
                yield f"{path} was {_form_text(old)}, is {_form_text(new)}"
        was = dict(zip(before._objects, before._classes, strict=True))
        for path, cls in zip(self._objects, self._classes, strict=True):
            if was.get(path, cls) is not cls:
                yield f"{path or 'the model'} was a {was[path].__name__}, is a {cls.__name__}"
        held = dict(zip(before._places, before._values, strict=True))
        for path, value in zip(self._places, self._values, strict=True):
            old = held.get(path, value)
            if isinstance(value, (dict, *_SEQUENCES, *_VALUES)):
                continue  # their contents were compared
            if old is not value and not (isinstance(value, _PLAIN) and _equal(old, value)):
                yield f"{path} was exchanged"

    @property
    def _core(self) -> dict[str, Any]:
        """What the model itself holds, without the hook that runs around the graph."""
        return {k: v for k, v in self._root_kept.items() if k not in ROOT_HOOK}


def _root(value: Any) -> str:
    """The package that a class or a function is of."""
    return str(value.__module__).partition(".")[0]


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


def _mark(tensor: Tensor) -> int:
    """What changes when a tensor gets other storage or is another one."""
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    """Where the numbers of a tensor are that a graph holds itself."""
    return _mark(tensor), tensor.shape, tensor.stride()


def _numbers(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.tobytes()


def _forms(weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Type, shape, dtype and device of each weight by path, and which are one tensor."""
    first: dict[int, str] = {}
    forms: dict[str, Any] = {}
    for place, held in weights.items():
        owner = place.rpartition("_parameters" if place.endswith("_parameters") else "_buffers")[0]
        for name, x in held.items():
            path = owner + name
            alias = first.setdefault(id(x), path)
            forms[path] = None if x is None else (type(x), x.shape, x.dtype, x.device, alias)
    return forms


def _form_text(form: Any) -> str:
    if form is None:
        return "none"
    kind, shape, dtype, device, alias = form
    return f"{kind.__name__}{tuple(shape)} {dtype} on {device} ({alias})"


def _changes(path: str, old: Any, new: Any) -> Iterator[str]:
    """Entries of a container that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs: Iterable[Any] = dict.fromkeys((*old, *new))
        for key in pairs:
            was, now = old.get(key, _GONE), new.get(key, _GONE)
            if key not in _WITHOUT_EFFECT and not _equal(was, now):
                yield f"{path}{'.' if path else ''}{key} {_change(was, now)}"
    elif not _equal(old, new):
        yield f"{path} {_change(old, new)}"


def _change(old: Any, new: Any) -> str:
    was, now = _text(old), _text(new)
    return f"was {was}, is {now}" if was != now else f"is another {now}"


def _equal(old: Any, new: Any) -> bool:
    try:
        return bool(old is new or old == new)
    except Exception:  # tensors of several values
        return False


_GONE = object()


def _text(value: Any) -> str:
    if value is _GONE:
        return "absent"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
