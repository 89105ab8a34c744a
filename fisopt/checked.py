"""Constructors that name what they do not take: `Checked`, the metaclass of what users build."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from fisopt.errors import OptionTypeError
from fisopt.nearest import did_you_mean


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
            return super().__call__(*args, **options)

        @property
        def __signature__(cls) -> inspect.Signature:
            """What the class takes; without it `inspect` shows the parameters of ``__call__``."""
            whole = inspect.signature(cls.__init__)
            return whole.replace(parameters=list(whole.parameters.values())[1:])


def _unfit(cls: type, options: dict[str, Any], error: TypeError) -> str:
    known = list(inspect.signature(cls).parameters)
    unknown = next((name for name in options if name not in known), None)
    takes = f"options are {', '.join(known)}" if known else "it takes no options"
    if unknown is None:
        return f"{cls.__name__}: {error}; {takes}"
    near = did_you_mean(unknown, known)
    return f"{cls.__name__} has no option {unknown!r}; {near}{takes[0].upper()}{takes[1:]}"
