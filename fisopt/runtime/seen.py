"""What a model reaches: every container that a captured graph may depend on, with what is read."""

from __future__ import annotations

import copyreg
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fisopt.rewrite.tools.diffusers_hooks import REGISTRY, described, is_hooked
from fisopt.rewrite.tools.tool import HOOKS, aside, read_by_graphs
from fisopt.rewrite.tracing.readiness import GLOBAL_HOOKS, ROOT_HOOK
from fisopt.runtime.reach import FUNCTIONS, parts

PLAIN = (str, bytes, int, float, complex)
SEQUENCES = (list, tuple, deque)
VALUES = (set, bytearray, array)
LOADERS = "diffusers.loaders"
"""Where diffusers defines what loads adapters; no forward call runs it."""
_OWN = frozenset(vars(nn.Module()))
_ATOMS = (nn.Module, type, ModuleType, *PLAIN)
_OPAQUE = {"builtins", "torch", "threading", "_thread", "logging", "functools", "typing", "weakref"}
_DEPTH = 12


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
class Seen:
    """What was found on the way through a model: containers with copies, places, weights.

    Attributes:
        parts: names in a module, by its path, of what only a part is compared of.
    """

    containers: dict[str, Any] = field(default_factory=dict)
    empty: list[Any] = field(default_factory=list)
    places: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    classes: dict[type, None] = field(default_factory=dict)
    hidden: dict[str, nn.Module] = field(default_factory=dict)
    parts: dict[str, set[str]] = field(default_factory=dict)
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
        if described(module):
            self.containers[f"{prefix}hooks of diffusers"] = _Watched(module, described)
        left_out = {REGISTRY, *(root_own(module) if is_root else ())}
        reads = read_by_graphs(module)
        for name, value in held.items():
            if name in reads:
                self.parts.setdefault(path, set()).add(name)
                self.containers[f"{prefix}{name}"] = _Watched(value, reads[name])
            elif name == "forward" and is_hooked(module, value):
                continue
            elif name not in _OWN and name not in left_out:
                self.inside(f"{prefix}{name}", held, name, value, _DEPTH)

    def kind(self, cls: type) -> None:
        """Take note of a class and of those that it inherits from.

        What Python fills into a class when one is first copied or asked is filled in now.
        """
        for base in cls.__mro__:
            own = base is not nn.Module and _root(base) not in ("builtins", "functools")
            if own and not base.__module__.startswith(LOADERS):
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
            if isinstance(value, (dict, list, *VALUES)) and self.enter(f"{path}.{name}", value):
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
        elif isinstance(value, (dict, *SEQUENCES)):
            self.places[path] = (holder, key, value)
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            if self.enter(path, value):
                for name, part in list(pairs):
                    self.inside(f"{path}[{name!r}]", value, name, part, depth - 1)
        elif isinstance(value, VALUES):
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


def root_own(model: nn.Module) -> frozenset[str]:
    """The attributes of a whole model that no graph depends on: what runs around it, and notes."""
    return aside(model).union(ROOT_HOOK)


def _root(value: Any) -> str:
    """The package that a class or a function is of."""
    return str(value.__module__).partition(".")[0]


def mark(tensor: Tensor) -> Any:
    """What changes when a tensor gets other storage or is another one.

    Moving a module exchanges the contents of a tensor of a class of its own, not the object.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.data_ptr()
    return id(tensor), type(tensor), tensor.dtype, tensor.device


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    """Where the numbers of a tensor are that a graph holds itself."""
    return mark(tensor), tensor.shape, tensor.stride()


def _numbers(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.tobytes()
