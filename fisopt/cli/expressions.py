"""Passes and masks as text: a name, or a call with literal options; nothing else is run."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fisopt.errors import FisoptError, OptionError, shown
from fisopt.nearest import did_you_mean
from fisopt.passes.presets import MAKERS, PRESETS, RENAMED, resolve, unknown
from fisopt.passes.tiling.mask_table import MASKS
from fisopt.passes.tiling.masks import FrameMask, frame_mask
from fisopt.rewrite.partition import Cells
from fisopt.rewrite.pass_base import Pass

EXAMPLE = 'FrameInterleave(stride=3, kv="all")'
_NO_EXPRESSION = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)
"""What `ast` raises for a text that is no expression, or no literal."""


def parse_passes(texts: Sequence[str], modules: Sequence[str] | None = None) -> tuple[Pass, ...]:
    """Turn pass expressions into passes, in order.

    Args:
        texts: presets, and passes with options.
        modules: modules of the user whose passes may be named, as ``module.Pass``.

    Raises:
        OptionError: a name or an option is not known (the nearest are given), an option is not a
            literal, its value is refused by the pass, or a module cannot be imported.
    """
    import_modules(modules or ())
    return resolve([parse_pass(text, modules or ()) for text in texts])


def import_modules(names: Sequence[str]) -> None:
    """Import modules of the user, from the working directory too.

    Raises:
        OptionError: one cannot be imported.
    """
    if names and "" not in sys.path:
        sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise OptionError(
                f"--import: cannot import {shown(name)}: {error}; wanted a module of the working "
                "directory or of PYTHONPATH"
            ) from error


def parse_pass(text: str, modules: Sequence[str] = ()) -> Pass | str:
    """Turn one expression into a pass, or a preset's name."""
    text = text.strip()
    if text in PRESETS or text in RENAMED:
        return text
    if (called := text.partition("(")[0].strip()) in PRESETS:
        raise _unreadable(text, f"a preset has no options; write {called}")
    try:
        expression = ast.parse(text, mode="eval").body
    except _NO_EXPRESSION as error:
        raise _unreadable(text, str(error)) from error
    name = _name(expression)
    if name is None:
        raise _unreadable(text, "it is neither a name nor a call")
    maker = _maker(name, modules)
    call = expression if isinstance(expression, ast.Call) else ast.Call(expression, [], [])
    try:
        made = maker(**_options(maker, call))
    except FisoptError as error:
        raise OptionError(f"cannot read pass {shown(text)}: {error}") from error
    if not isinstance(made, Pass):
        raise OptionError(f"{name} makes {shown(made)}, wanted a fisopt.Pass")
    return made


def _maker(name: str, modules: Sequence[str]) -> Callable[..., Any]:
    """What makes the pass of a name."""
    if name in MAKERS:
        return MAKERS[name]
    module, _, attribute = name.rpartition(".")
    if module not in modules:
        hint = f"; a pass of your own needs --import {module}" if module else ""
        raise OptionError(unknown(name) + hint)
    found: Any = getattr(sys.modules[module], attribute, None)
    if not (_is_pass(found) or (inspect.isfunction(found) and found.__module__ == module)):
        known = [n for n, x in vars(sys.modules[module]).items() if _is_pass(x)]
        raise OptionError(
            f"{module} has no pass {attribute}; {did_you_mean(attribute, known)}"
            f"Its passes are {', '.join(known) or 'none'}"
        )
    maker: Callable[..., Any] = found
    return maker


def _is_pass(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Pass) and not inspect.isabstract(thing)


def parse_mask(text: str) -> FrameMask:
    """Turn an int k or a call like ``SlidingWindow(radius=2)`` into a mask.

    Raises:
        OptionError: it is neither, or its options are refused.
    """
    try:
        return frame_mask(_value(ast.parse(text.strip(), mode="eval").body))
    except _NO_EXPRESSION as error:
        raise OptionError(
            f"cannot read mask {shown(text)}: {error}; wanted a number of global frames, or one of "
            f"{', '.join(MASKS)} with its options by name"
        ) from error


def parse_stride(text: str) -> Cells:
    """Read ``2,2,2``.

    Raises:
        OptionError: it is not three positive ints.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise OptionError(
            f"stride must be FRAMES,ROWS,COLUMNS, three ints like 2,2,2; got {text!r}"
        )
    frames, rows, columns = (int(part) for part in parts)
    return frames, rows, columns


def _value(expression: ast.expr) -> Any:
    """A literal, or a mask with literal options."""
    if not isinstance(expression, ast.Call):
        try:
            return ast.literal_eval(expression)
        except _NO_EXPRESSION as error:
            raise OptionError(
                f"{shown(ast.unparse(expression))} is not a literal; wanted a number, text in "
                "quotes, or a list or tuple of these"
            ) from error
    name = _name(expression)
    if name not in MASKS:
        raise OptionError(
            f"{shown(ast.unparse(expression))} is neither a literal nor a mask; "
            f"{did_you_mean(name, MASKS)}Masks are {', '.join(MASKS)}"
        )
    return MASKS[name](**_options(MASKS[name], expression))


def _options(cls: Callable[..., Any], call: ast.Call) -> dict[str, Any]:
    """The options of a call, each said once and by name; those of a function also in order."""
    known = list(inspect.signature(cls).parameters)
    in_order = 0 if isinstance(cls, type) else len(known)
    if len(call.args) > in_order or any(keyword.arg is None for keyword in call.keywords):
        raise OptionError(f"give the options of {cls.__name__} by name ({', '.join(known)})")
    given = [*zip(known, call.args, strict=False)]
    given += [(str(keyword.arg), keyword.value) for keyword in call.keywords]
    names = [name for name, _ in given]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OptionError(f"{cls.__name__} has {' and '.join(sorted(twice))} twice")
    values = {}
    for name, value in given:
        try:
            values[name] = _value(value)
        except OptionError as error:
            raise OptionError(f"{name}: {error}") from error
    return values


def _name(expression: ast.expr) -> str | None:
    """The name that an expression names or calls; ``fis-x`` parses as a subtraction."""
    if isinstance(expression, ast.Call):
        expression = expression.func
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        owner = _name(expression.value)
        return f"{owner}.{expression.attr}" if owner else None
    is_word = all(
        isinstance(node, (ast.BinOp, ast.Sub, ast.Name, ast.Constant, ast.Load))
        for node in ast.walk(expression)
    )
    return ast.unparse(expression).replace(" ", "") if is_word else None


def _unreadable(text: str, reason: str) -> OptionError:
    return OptionError(
        f"cannot read pass {shown(text)}: {reason}; wanted a preset name or a call like {EXAMPLE}"
    )
