"""Tokens: values that are the same in every process as text, and functions by their code."""

from __future__ import annotations

import enum
import hashlib
import inspect
import logging
import re
import types
import typing
from _collections import _tuplegetter
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from fisopt.errors import FisoptError

_TEXTS = (
    *(str, bytes, int, float, complex, type(None), type(Ellipsis), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    *(range, slice, np.dtype, np.generic, types.GenericAlias, types.UnionType),
    *(inspect.Parameter, inspect.Signature, PurePath, _tuplegetter),
)
_BUILTIN = (
    *(types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    types.MemberDescriptorType,
)
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
_LOCKS = {"lock", "RLock", "local", "_thread"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class NotStableError(FisoptError):
    """Something that no text says so that another process could compare it; the message is why."""


def atom(path: str, value: Any) -> str | None:
    """What a value without parts is, as text; None for one that has parts.

    Raises:
        NotStableError: it is written with an address in memory.
    """
    kind = type(value)
    if isinstance(value, enum.Enum):
        return checked(path, f"{name_of(kind)}.{value.name} {value.value!r}")
    if kind.__module__ == "dataclasses":  # marks; what a field is shows in the class
        return name_of(kind)
    if isinstance(value, _TEXTS) or kind.__module__ == "typing" or _is_typing(value):
        return f"{name_of(kind)} {checked(path, repr(value))}"
    if isinstance(value, _BUILTIN):
        return f"builtin {getattr(value, '__module__', '')}.{value.__qualname__}"
    if isinstance(value, _OPERATORS):
        return f"operator {value}"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, re.Pattern):
        return f"pattern {value.pattern!r} {value.flags}"
    if isinstance(value, logging.Logger | logging.LoggerAdapter) or kind.__name__ in _LOCKS:
        return name_of(kind)  # decides nothing
    return None


def _is_typing(value: Any) -> bool:
    return isinstance(value, typing.TypeVar | typing.ForwardRef)


def checked(path: str, text: str) -> str:
    """A text that holds no address in memory.

    Raises:
        NotStableError: it does.
    """
    if _ADDRESS.search(text):
        raise NotStableError(f"{path} is {text[:80]}")
    return text


def name_of(kind: Any) -> str:
    """Where a class or a function is defined."""
    return f"{kind.__module__}.{kind.__qualname__}"


def root_of(function: types.FunctionType) -> str:
    """The package whose file a function is written in, whatever it says that it is called."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


def code_token(code: types.CodeType) -> str:
    """A digest of what a function does, apart from what it reads by name."""
    said = hashlib.sha256(code.co_code)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    said.update(repr((counts, names, code.co_exceptiontable)).encode())
    for constant in code.co_consts:
        said.update(_constant(constant).encode())
    return said.hexdigest()


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return code_token(value)
    if isinstance(value, frozenset):
        return f"set {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[*map(_constant, value)]}"
    return f"{type(value).__name__} {value!r};"


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names that a function reads, and those that it may look up: strings that are names."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
