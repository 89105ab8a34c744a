"""A digest of all that a capture depends on: equal in two processes only if their captures are.

It goes from a model to its layers, to their classes, to the functions that forward calls reach, to
what these read by name, close over and hold, and to the source files of them all.  Which method is
called is not known, so each counts whose name is mentioned.  What it meets and cannot put into
words makes the state one that is not kept: a miss costs seconds, a wrong hit a wrong result.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import FakeTensor

from fisopt.rewrite.tools.diffusers_hooks import REGISTRY, described, is_hooked
from fisopt.rewrite.tools.tool import HOOKS, read_by_graphs
from fisopt.rewrite.tracing.held_state import slots
from fisopt.rewrite.tracing.inner import inner_form
from fisopt.rewrite.tracing.readiness import INSTALLED
from fisopt.runtime.disk.foreign import FOREIGN, defines, exchanged_in
from fisopt.runtime.disk.tokens import (
    NotStableError,
    atom,
    checked,
    code_token,
    name_of,
    names_in,
    root_of,
)
from fisopt.runtime.reach import is_filled
from fisopt.runtime.seen import LOADERS, root_own

OUTSIDE = {"environ", "getenv", "open"}
"""What functions read outside of the process; of libraries it does not count, which mention it in
much that no forward call reaches."""
LARGEST = 1 << 26
"""Bytes of a tensor that is no weight."""
MOST = 300_000
"""Values that are looked at."""
_OWN = frozenset(vars(nn.Module())) - {"training"}
_UNREAD = {
    *("__doc__", "__dict__", "__weakref__", "__module__", "__annotations__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__"),
    *("__dataclass_params__", "__match_args__", "__slotnames__", "__parameters__", "__slots__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__", "__orig_bases__"),
}
"""What a class holds that says nothing of its own, or is said elsewhere."""
_LRU = type(functools.lru_cache(len))
_WRAPPERS: dict[type, tuple[str, ...]] = {
    types.MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    _LRU: ("__wrapped__",),
    CustomOpDef: ("_init_fn",),
}


class StateDigest:
    """What a model, and more that belongs to it, is at one time.

    Args:
        model: the model.
        more: further values, such as its spec.

    Attributes:
        modules: names of the Python modules that what was reached is defined in.

    Raises:
        NotStableError: something in it cannot be said in words.
    """

    def __init__(self, model: nn.Module, *more: Any) -> None:
        self._root = model
        self._weights = {
            id(x): f"{path}.{name}"
            for path, module in model.named_modules()
            for held in (module._parameters, module._buffers)
            for name, x in held.items()
            if x is not None
        }
        self._config = getattr(model, "config", None)
        self._said = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._todo: deque[tuple[str, Any]] = deque()
        self._names = {"forward"}
        self._methods: dict[str, list[tuple[str, Any]]] = {}
        self.modules: dict[str, None] = {}
        for i, value in enumerate((model, *more)):
            self._say(self._token("the model" if i == 0 else "the spec", value))
        self._exchanged()
        self._walk()

    @property
    def text(self) -> str:
        """The digest, in hexadecimal."""
        return self._said.hexdigest()

    def _walk(self) -> None:
        while True:
            while self._todo:
                self._visit(*self._todo.popleft())
            called = sorted(self._names & self._methods.keys())
            if not called:
                return
            for name in called:
                for path, function in self._methods.pop(name):
                    self._say(path, self._token(path, function))

    def _say(self, *texts: str) -> None:
        for text in texts:
            self._said.update(f"{len(text)} {text}".encode(errors="surrogatepass"))

    def _token(self, path: str, value: Any) -> str:
        """A value as text; one with parts as a number, under which its parts are said later."""
        if (text := atom(path, value)) is not None:
            return text
        if isinstance(value, Tensor) and id(value) in self._weights:
            return f"weight {self._weights[id(value)]}"
        if id(value) not in self._numbers:
            if len(self._alive) >= MOST:
                raise NotStableError(f"{path} is one of more than {MOST:,} values")
            self._numbers[id(value)] = len(self._alive)
            self._alive.append(value)
            self._todo.append((path, value))
        return f"#{self._numbers[id(value)]}"

    def _parts(self, path: str, parts: Mapping[Any, Any]) -> None:
        for key, value in list(parts.items()):
            inner = f"{path}.{key}"
            self._say(self._token(inner, key), self._token(inner, value))

    def _visit(self, path: str, value: Any) -> None:
        kind = type(value)
        self._say(path and f"#{self._numbers[id(value)]}", name_of(kind))
        if isinstance(value, nn.Module):
            self._module(path, value)
        elif isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, types.CodeType):
            self._say(code_token(value))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            data = hashlib.sha256(value.tobytes()).hexdigest()
            self._say(str(value.dtype), repr(value.shape), data)
        elif isinstance(value, (set, frozenset)):
            self._say(*sorted(self._plain(path, x) for x in value))
        elif kind in _WRAPPERS:
            names = [n for n in _WRAPPERS[kind] if getattr(value, n, None) is not None]
            self._parts(path, {name: getattr(value, name) for name in names})
        elif isinstance(value, weakref.ref):
            self._parts(path, {"": value()})
        else:
            self._held(path, value)

    def _plain(self, path: str, value: Any) -> str:
        """A member of a set, whose order is another in each process."""
        if isinstance(value, tuple):
            return f"tuple {[self._plain(path, x) for x in value]}"
        text = name_of(value) if isinstance(value, type) else atom(path, value)
        if text is None:
            raise NotStableError(f"{path} is a set that holds a {name_of(type(value))}")
        return text

    def _held(self, path: str, value: Any) -> None:
        """A container or an object: its class, its entries and its attributes."""
        kind = type(value)
        if kind is object:  # a mark, which holds nothing
            return
        self._say(self._token(path, kind))
        known = isinstance(value, (dict, list, tuple, deque, types.MappingProxyType))
        if isinstance(value, (dict, types.MappingProxyType)):
            entries = value.items()
            if value is self._config:  # what begins so says where it came from
                entries = [(k, v) for k, v in entries if not str(k).startswith("_")]  # type: ignore[assignment]
            self._parts(path, dict(entries))
        elif isinstance(value, (list, tuple, deque)):
            self._parts(path, dict(enumerate(value)))
        foreign = kind.__module__.partition(".")[0] in FOREIGN - {"fisopt"}
        if foreign and not known and kind.__module__ != "torch.autograd.grad_mode":
            raise NotStableError(f"{path} is a {name_of(kind)}")
        self._parts(path, {n: getattr(value, n) for n in slots(kind) if hasattr(value, n)})
        if isinstance(held := getattr(value, "__dict__", None), dict):
            if value is self._config:
                held = {k: v for k, v in held.items() if not k.startswith("_")}
            self._parts(path, held)

    def _module(self, path: str, module: nn.Module) -> None:
        held, root = vars(module), module is self._root
        self._say(self._token(path, type(module)))
        self._parts(path if not root else "layers", held["_modules"])
        for name in ("_parameters", "_buffers"):
            for key, x in held[name].items():
                self._say(key, self._weight(f"{path}.{key}", x))
        for name in () if root else HOOKS:
            kwargs = held.get(f"{name}_with_kwargs", {})
            for key, hook in held[name].items():  # keys are counted through a process
                self._say(name, str(key in kwargs), self._token(f"{path}.{name}", hook))
        self._say(self._token(f"{path}: hooks of diffusers", described(module)))
        reads, left_out = read_by_graphs(module), root_own(module) if root else frozenset()
        for name, value in sorted(held.items()):  # tracing may have set some anew
            inner = f"{path}.{name}"
            if name in reads:
                self._say(name, self._token(inner, reads[name](value)))
            elif name == "forward" and is_hooked(module, value):
                continue
            elif name not in _OWN and name not in left_out and name != REGISTRY:
                self._say(name, self._token(inner, value))

    def _weight(self, path: str, x: Tensor | None) -> str:
        if x is None:
            return "none"
        own = self._weights.get(id(x))
        if own is None:  # of a module that is no layer: a graph holds what it holds
            return self._token(path, x.data)
        form = x.shape, x.stride(), x.dtype, x.device, x.requires_grad, own, inner_form(x)
        return checked(path, f"{name_of(type(x))} {form}")

    def _tensor(self, path: str, x: Tensor) -> None:
        if isinstance(x, FakeTensor) or type(x) not in (Tensor, nn.Parameter):
            raise NotStableError(f"{path} is a {name_of(type(x))}")
        if (size := x.numel() * x.element_size()) > LARGEST:
            raise NotStableError(f"{path} is a tensor of {size:,} bytes and no weight")
        self._say(str(x.dtype), repr(x.shape), repr(x.stride()), str(x.device))
        if not x.is_meta:
            flat = x.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
            self._say(hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest())

    def _class(self, kind: type) -> None:
        home = kind.__module__.partition(".")[0]
        self._say(name_of(kind))
        if kind.__module__.startswith(LOADERS):
            return
        if home in FOREIGN:
            self._changed_class(kind)
            return
        self.modules[kind.__module__] = None
        for base in kind.__bases__:
            self._say(self._token(name_of(kind), base))
        for name, value in list(vars(kind).items()):
            if name not in _UNREAD:
                self._member(kind, name, value)

    def _member(self, kind: type, name: str, value: Any) -> None:
        """What a class defines: a method counts once something mentions its name."""
        path = f"{kind.__qualname__}.{name}"
        is_method = isinstance(value, (types.FunctionType, *_WRAPPERS))
        if not is_method:
            if not isinstance(value, dataclasses.Field):
                self._say(name, self._token(path, value))
            return
        held = [value, *(getattr(value, n, None) for n in _WRAPPERS.get(type(value), ()))]
        for function in held:
            if isinstance(function, types.FunctionType):
                self._say(name, code_token(function.__code__))
        made = name in ("__init__", "__new__") and issubclass(kind, nn.Module)
        if name.startswith("__") and name.endswith("__") and not made:
            self._names.add(name)
        self._methods.setdefault(name, []).append((path, value))

    def _function(self, path: str, function: types.FunctionType) -> None:
        code, home = function.__code__, root_of(function)
        self._say(function.__qualname__, code_token(code))
        inside = {
            name: cell.cell_contents
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
            if is_filled(cell)
        }
        if home in FOREIGN - {"fisopt"}:  # it may wrap a function of somebody else's
            self._parts(path, {n: x for n, x in inside.items() if _is_called(x)})
            return
        self._parts(path, inside)
        held = function.__defaults__, function.__kwdefaults__, function.__dict__ or None
        self._parts(path, dict(enumerate(held)))
        if home == "fisopt":
            return
        self.modules[str(function.__globals__.get("__name__", ""))] = None
        names = set(names_in(code))
        own = INSTALLED.isdisjoint(Path(code.co_filename).parts)
        if own and (found := sorted(names & OUTSIDE)):
            raise NotStableError(f"{path} reads what no key holds ({found[0]})")
        self._names |= names
        self._read(function.__globals__, names)

    def _read(self, held: Mapping[str, Any], names: set[str]) -> None:
        """What a function reads by name, and as attributes of modules that it reads."""
        where = held.get("__name__", "")
        for name in sorted(names & held.keys()):
            value = held[name]
            self._say(name, self._token(f"{where}.{name}", value))
            if isinstance(value, types.ModuleType) and _root(value.__name__) not in FOREIGN:
                for inner in sorted(names & vars(value).keys()):
                    path = f"{value.__name__}.{inner}"
                    self._say(inner, self._token(path, vars(value)[inner]))

    def _exchanged(self) -> None:
        """Functions that somebody has put in the place of torch's."""
        for holder in (torch, nn.functional):
            for name, function in exchanged_in(holder):
                self._say(name, self._token(f"{holder.__name__}.{name}", function))
        for kind in (Tensor, nn.Module):
            self._changed_class(kind)

    def _changed_class(self, kind: type) -> None:
        """What somebody has put into a class of a library: one that is new counts once named."""
        for name, function in exchanged_in(kind):
            path = f"{name_of(kind)}.{name}"
            if defines(kind, name):
                self._say(name, self._token(path, function))
            else:
                self._methods.setdefault(name, []).append((path, function))


def _root(name: str) -> str:
    return name.partition(".")[0]


def _is_called(value: Callable[..., Any] | Any) -> bool:
    return isinstance(value, (types.FunctionType, type, nn.Module, *_WRAPPERS))
