"""What a model holds in Python: found, remembered, and put back.

From a model one comes to the dicts, lists and objects that hang on its modules, to their classes,
and to the source files of these.  What hangs on the model is put back whole.  Classes and files
are shared with the rest of the program, which may change them meanwhile: there, what tracing left
is taken out and nothing else.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

_TRACED = (FakeTensor, FunctionalTensor, torch.SymInt, torch.SymFloat, torch.SymBool, fx.Proxy)
_ATOMS = (str, bytes, int, float, complex, type(None), types.ModuleType, torch.Size, torch.dtype)
_PLAIN = (str, bytes, int, float, complex)
_LRU = type(functools.lru_cache(len))
_WRAPPERS = (types.MethodType, functools.partial, staticmethod, classmethod, property)
_WRAPPED = ("__self__", "__func__", "func", "args", "keywords", "fget")
_FOREIGN = {"torch", "numpy", "fisopt", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose own state is not a model's."""
_CONTAINERS = {"collections", "types", "weakref"}
"""Modules of the standard library whose objects hold what others put there."""
_DEPTH = 5
"""How deep in an entry something traced is looked for."""

Contents = dict[Any, Any]
Parts = Iterable[tuple[Any, Any]]


@dataclass(frozen=True)
class _Holder:
    """One thing that holds others, and what it held.

    Attributes:
        path: its name, as it hangs on the model; empty for what is shared.
        read: what it holds now, by key.
        write: make it hold something else.
        before: what it held.
    """

    path: str
    read: Callable[[], Contents]
    write: Callable[[Contents], None]
    before: Contents

    def restore(self) -> list[str]:
        """Put back what it held; return the names of what had changed."""
        now = self.read()
        if _same(now, self.before):
            return []
        wanted = self.before if self.path else self._without_traces(now)
        if not _same(now, wanted):
            self.write(wanted)
        return [
            f"{self.path}.{key}"
            for key in {**now, **self.before}
            if not _equal(now.get(key, self), self.before.get(key, self))
        ]

    def _without_traces(self, now: Contents) -> Contents:
        wanted = dict(now)
        for key, value in now.items():
            if value is not self.before.get(key) and (_is_traced(value) or _is_traced(key)):
                del wanted[key]
                wanted |= {k: self.before[k] for k in (key,) if k in self.before}
        return wanted


class HeldState:
    """What a model and the tensors of a call hold when this is made.

    Attributes:
        tensors: every tensor that was found.
        changed: names of what hung on the model and had changed when it was put back.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Any] = ()) -> None:
        self.tensors: list[torch.Tensor] = []
        self.changed: dict[str, None] = {}
        self._names = {id(m): path or type(model).__name__ for path, m in model.named_modules()}
        self._packages: set[str] = set()
        self._holders: list[_Holder] = []
        self._caches: list[tuple[Any, Any]] = []
        self._seen: dict[int, Any] = {}
        self._shared: list[Any] = []
        self._visit(model, "model")
        for leaf in inputs:
            self._visit(leaf, "an input")
        while self._shared:
            self._visit(self._shared.pop(), "")

    def restore(self) -> None:
        """Put everything back."""
        for cache, info in self._caches:
            if cache.cache_info() != info and _is_traced(gc.get_referents(cache)):
                cache.cache_clear()
        for holder in self._holders:
            changed = holder.restore()
            if holder.path:
                self.changed |= dict.fromkeys(changed)

    def _visit(self, start: Any, path: str) -> None:
        """Remember all that is reached from a value; what is shared waits for the model's own."""
        todo = [(start, path)]
        while todo:
            value, path = todo.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            if path and isinstance(value, (type, types.FunctionType, _LRU)):
                self._shared.append(value)
                continue
            self._seen[id(value)] = value
            path = self._names.get(id(value), path)
            todo += [(part, path and f"{path}.{key}") for key, part in self._parts(value, path)]

    def _parts(self, value: Any, path: str) -> Parts:
        """Remember what one value holds; return it by name."""
        match value:
            case dict():
                return self._hold(path, lambda: dict(value), lambda c: _put_dict(value, c))
            case list() | deque():
                return self._hold(
                    path, lambda: dict(enumerate(value)), lambda c: _put_list(value, c)
                )
            case set():
                return self._hold(path, lambda: dict.fromkeys(value), lambda c: _put_set(value, c))
            case tuple() | frozenset():
                return enumerate(value)
            case types.CellType():
                return self._hold("", lambda: _cell(value), lambda c: _put_cell(value, c))
            case types.FunctionType():
                return self._function(value)
            case type():
                return self._class(value)
        if isinstance(value, _LRU):
            self._caches.append((value, value.cache_info()))
            return [("", value.__wrapped__)]
        if isinstance(value, _WRAPPERS):
            return [(n, getattr(value, n)) for n in _WRAPPED if hasattr(value, n)]
        return self._object(value, path)

    def _hold(
        self, path: str, read: Callable[[], Contents], write: Callable[[Contents], None]
    ) -> Parts:
        before = read()
        self._holders.append(_Holder(path, read, write, before))
        return before.items()

    def _function(self, value: types.FunctionType) -> Parts:
        if _package(value) not in self._packages:
            return []
        held = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
        names = set(_names(value.__code__))
        return [*(("", part) for part in held), *self._globals(value.__globals__, names)]

    def _globals(self, source: dict[str, Any], names: set[str]) -> Parts:
        """What a function reads or sets in its source file, and in those that it imports."""
        todo: list[dict[str, Any]] = [source]
        parts: list[tuple[Any, Any]] = []
        while todo:
            held = todo.pop()
            before = self._hold(
                "",
                lambda held=held: {n: held[n] for n in names if n in held},  # type: ignore[misc]
                lambda c, held=held: _put_names(held, names, c),  # type: ignore[misc]
            )
            parts += before
            todo += [
                vars(value)
                for _, value in before
                if held is source and isinstance(value, types.ModuleType) and self._owns(value)
            ]
        return parts

    def _owns(self, source: types.ModuleType) -> bool:
        return source.__name__.partition(".")[0] in self._packages

    def _class(self, value: type) -> Parts:
        if _package(value) not in self._packages:
            return []
        self._hold("", lambda: dict(vars(value)), lambda c: _put_class(value, c))
        return [("", part) for part in (*vars(value).values(), *value.__bases__)]

    def _object(self, value: Any, path: str) -> Parts:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            self.tensors.append(value)
            self._hold(path, lambda: {0: value.requires_grad}, lambda c: _require(value, c[0]))
        elif not isinstance(value, nn.Module) and _package(kind) in _FOREIGN - _CONTAINERS:
            return []
        if path:
            self._packages |= {_package(kind)} - _FOREIGN
            self._shared.append(kind)
        parts: Contents = {}
        if names := slots(kind):
            read = lambda: {n: getattr(value, n) for n in names if hasattr(value, n)}  # noqa: E731
            parts |= self._hold(path, read, lambda c: _put_slots(value, c))
        if isinstance(held := getattr(value, "__dict__", None), dict):
            parts |= self._hold(path, lambda: dict(held), lambda c: _put_dict(held, c))
        return parts.items()


def _package(value: Any) -> str:
    """The top package that a class or a function is of."""
    return str(value.__module__).partition(".")[0]


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function and those inside of it use for globals and attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _same(a: Contents, b: Contents) -> bool:
    return len(a) == len(b) and all(
        x is y and v is w for (x, v), (y, w) in zip(a.items(), b.items(), strict=True)
    )


def _is_traced(value: Any, depth: int = _DEPTH) -> bool:
    """Whether a value is, or holds, something that only a traced call knows."""
    if isinstance(value, _TRACED):
        return True
    if depth == 0 or isinstance(value, (*_ATOMS, type, types.FunctionType)):
        return False
    if isinstance(value, dict):
        held: Iterable[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        held = list(value)
    else:
        held = list(getattr(value, "__dict__", {}).values())
    return any(_is_traced(part, depth - 1) for part in held)


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are one, or plain values that are equal: tracing makes some anew."""
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return all(map(_equal, a, b))
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)


def _put_dict(holder: dict[Any, Any], wanted: Contents) -> None:
    for key in [k for k in holder if k not in wanted]:
        del holder[key]
    for key, value in wanted.items():
        if key not in holder or holder[key] is not value:
            holder[key] = value
    if list(holder) != list(wanted):
        holder.clear()
        holder.update(wanted)


def _put_names(holder: dict[str, Any], names: set[str], wanted: Contents) -> None:
    for name in names & holder.keys() - wanted.keys():
        del holder[name]
    holder.update(wanted)


def _put_list(holder: Any, wanted: Contents) -> None:
    holder.clear()
    holder.extend(wanted.values())


def _put_set(holder: set[Any], wanted: Contents) -> None:
    holder.clear()
    holder.update(wanted)


def _cell(holder: types.CellType) -> Contents:
    try:
        return {0: holder.cell_contents}
    except ValueError:  # not filled yet
        return {}


def _put_cell(holder: types.CellType, wanted: Contents) -> None:
    if wanted:
        holder.cell_contents = wanted[0]
    else:
        del holder.cell_contents


def _put_class(holder: type, wanted: Contents) -> None:
    for name in set(vars(holder)) - set(wanted):
        delattr(holder, name)
    for name, value in wanted.items():
        if vars(holder).get(name) is not value:
            setattr(holder, name, value)


def slots(kind: type) -> tuple[str, ...]:
    """The names of the slots of a class."""
    found = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    names = [n for some in found for n in ((some,) if isinstance(some, str) else some)]
    return tuple(n for n in dict.fromkeys(names) if n not in ("__dict__", "__weakref__"))


def _put_slots(holder: Any, wanted: Contents) -> None:
    for name, value in wanted.items():
        object.__setattr__(holder, name, value)


def _require(tensor: torch.Tensor, grad: bool) -> None:
    tensor.requires_grad_(grad)
