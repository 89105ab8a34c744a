"""Options: constructors that name what they do not take, and checks that several of them make."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar

from fisopt.errors import FisoptError, OptionError, OptionTypeError, shown
from fisopt.nearest import did_you_mean

Given = ParamSpec("Given")
Made = TypeVar("Made")


class Checked(ABCMeta):
    """Of a class whose constructor raises OptionTypeError for options that it does not have.

    Without it a misspelt option is Python's TypeError, which no ``except FisoptError`` sees.
    """

    if not TYPE_CHECKING:  # type checkers read the constructors themselves

        def __call__(cls, *args: Any, **options: Any) -> Any:
            """Construct.

            Raises:
                OptionTypeError: an option is not known (the nearest are given), or is missing.
            """
            try:
                cls.__signature__.bind(*args, **options)
            except TypeError as error:
                raise OptionTypeError(_unfit(cls, options, error)) from None
            if missing := sorted(cls.__abstractmethods__):
                raise OptionTypeError(
                    f"{cls.__name__} is abstract; subclass it, with {', '.join(missing)}"
                )
            return super().__call__(*args, **options)

        @property
        def __signature__(cls) -> inspect.Signature:
            """What the class takes; without it `inspect` shows the parameters of ``__call__``."""
            whole = inspect.signature(cls.__init__)
            return whole.replace(parameters=list(whole.parameters.values())[1:])


def checked(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Of a function that raises OptionTypeError for arguments that it does not take."""
    takes = inspect.signature(function)

    @wraps(function)
    def call(*args: Given.args, **options: Given.kwargs) -> Made:
        try:
            takes.bind(*args, **options)
        except TypeError as error:
            raise OptionTypeError(_unfit(function, options, error)) from None
        return function(*args, **options)

    return call


def _unfit(cls: Callable[..., object], options: dict[str, Any], error: TypeError) -> str:
    known = list(inspect.signature(cls).parameters)
    unknown = next((name for name in options if name not in known), None)
    takes = f"options are {', '.join(known)}" if known else "it takes no options"
    if unknown is None:
        return f"{cls.__name__}: {error}; {takes}"
    near = did_you_mean(unknown, known)
    return f"{cls.__name__} has no option {unknown!r}; {near}{takes[0].upper()}{takes[1:]}"


def choice(where: str, value: object, allowed: Sequence[str]) -> None:
    """Insist on one of some words.

    Raises:
        OptionError: it is another; the nearest are given.
    """
    if not isinstance(value, str) or value not in allowed:
        near = did_you_mean(value, allowed).rstrip()
        raise OptionError(
            f"{where} must be one of {list(allowed)}, got {shown(value)}{near and '; '}{near}"
        )


def flag(where: str, value: object) -> None:
    """Insist on True or False: a word such as "no" would count as True.

    Raises:
        OptionTypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise OptionTypeError(f"{where} must be True or False, got {shown(value)}")


def is_int(value: object, least: int = -(1 << 63)) -> TypeGuard[int]:
    """Whether a value is an int, at least ``least`` and of 64 bits, which is what torch takes."""
    return type(value) is int and least <= value < 1 << 63


def count(where: str, value: object, least: int = 1, error: type[FisoptError] = OptionError) -> int:
    """Insist on an int, at least ``least`` and of 63 bits, which is what torch takes.

    Raises:
        OptionError: it is no int, or is less; or ``error``.
    """
    if not is_int(value, least):
        raise error(f"{where}: got {shown(value)}, wanted {least} or more")
    return value


def path_of(where: str, value: object) -> Path:
    """Insist on a path.

    Raises:
        OptionTypeError: it is neither text nor a path.
    """
    if not isinstance(value, (str, Path)):
        raise OptionTypeError(f"{where}: got {shown(value)}, wanted a path")
    return Path(value)
