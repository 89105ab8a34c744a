"""Passes and masks as text: a name, or a call with literal options; nothing is run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any

import fisopt
from fisopt.errors import OptionError
from fisopt.nearest import did_you_mean
from fisopt.passes.mask_table import MASKS
from fisopt.passes.masks import FrameMask, frame_mask
from fisopt.passes.presets import PRESETS, resolve
from fisopt.rewrite.pass_base import Pass

EXAMPLE = 'FrameInterleave(stride=3, kv="all")'


def known_passes() -> dict[str, type[Pass]]:
    """Return every pass of fisopt's own that can be said in text, by name."""
    exported = {name: getattr(fisopt, name) for name in fisopt.__all__}
    return {
        name: value
        for name, value in exported.items()
        if isinstance(value, type)
        and issubclass(value, Pass)
        and value.__module__.startswith("fisopt.passes.")
    }


def parse_passes(texts: Sequence[str]) -> tuple[Pass, ...]:
    """Turn pass expressions into passes, in order.

    Raises:
        OptionError: a name or an option is not known (the nearest are given), an option is not a
            literal, or its value is refused by the pass.
    """
    return resolve([parse_pass(text) for text in texts])


def parse_pass(text: str) -> Pass | str:
    """Turn one expression into a pass, or a preset's name."""
    text = text.strip()
    if text in PRESETS:
        return text
    try:
        expression = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _unreadable(text, error.msg) from error
    name = _name(expression)
    if name is None:
        raise _unreadable(text, "it is neither a name nor a call")
    passes = known_passes()
    if name not in passes:
        raise OptionError(
            f"unknown pass or preset {name!r}; {did_you_mean(name, [*passes, *PRESETS])}"
            f"Passes are {', '.join(passes)}; presets are {', '.join(PRESETS)}"
        )
    if not isinstance(expression, ast.Call):
        return passes[name]()
    return _construct(passes[name], expression, text)


def parse_mask(text: str) -> FrameMask:
    """Turn an int k or a call like ``SlidingWindow(radius=2)`` into a mask.

    Raises:
        OptionError: it is neither, or its options are refused.
    """
    try:
        return frame_mask(_value(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, TypeError, ValueError) as error:
        raise OptionError(
            f"cannot read mask {text!r}: {error}; wanted a number of global frames, or one of "
            f"{', '.join(MASKS)} with its options by name"
        ) from error


def _value(expression: ast.expr) -> Any:
    """A literal, or a mask with literal options."""
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
        options = {str(k.arg): ast.literal_eval(k.value) for k in expression.keywords}
        if expression.func.id in MASKS and not expression.args:
            return MASKS[expression.func.id](**options)
    return ast.literal_eval(expression)


def _name(expression: ast.expr) -> str | None:
    """The name that an expression names or calls; ``fis-x`` parses as a subtraction."""
    if isinstance(expression, ast.Call):
        expression = expression.func
    if isinstance(expression, ast.Name):
        return expression.id
    is_word = all(
        isinstance(node, (ast.BinOp, ast.Sub, ast.Name, ast.Constant, ast.Load))
        for node in ast.walk(expression)
    )
    return ast.unparse(expression).replace(" ", "") if is_word else None


def _construct(cls: type[Pass], call: ast.Call, text: str) -> Pass:
    options = list(inspect.signature(cls).parameters)
    if call.args:
        raise _unreadable(text, f"options are given by name ({', '.join(options)})")
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _unreadable(text, "** is not allowed")
        if keyword.arg not in options:
            raise OptionError(
                f"{cls.__name__} has no option {keyword.arg!r}; "
                f"{did_you_mean(keyword.arg, options)}Options are {', '.join(options)}"
            )
        try:
            values[keyword.arg] = _value(keyword.value)
        except ValueError as error:
            raise _unreadable(
                text, f"{keyword.arg}={ast.unparse(keyword.value)} is not a literal"
            ) from error
    try:
        return cls(**values)
    except TypeError as error:
        raise OptionError(f"{text}: {error}") from error


def _unreadable(text: str, reason: str) -> OptionError:
    return OptionError(
        f"cannot read pass {text!r}: {reason}; wanted a preset name or a call like {EXAMPLE}"
    )
