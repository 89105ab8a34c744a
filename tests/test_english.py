"""Public docstrings and the texts of ``--help`` follow the style of the pages, see `tests/prose.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import click
import pytest
import typer.main

import fisopt
from fisopt import distill, errors, models, operators, testing
from fisopt.cli import app
from fisopt.cli import help as texts
from tests import prose

MODULES = (fisopt, distill, errors, models, operators, testing)
EXAMPLES = re.compile(r"^\x08\n(?:.+\n)*", re.MULTILINE)
"""Paragraphs of ``--help`` that keep their lines: commands."""
NAME = re.compile(r"^ +\**\w+: ", re.MULTILINE)
"""An argument, an attribute or an error of a docstring, which is no prose."""
INDENTED = re.compile(r"::\n\n(?:    .*\n|\n)*")
MARKUP = re.compile(r"\\?\[/?cyan\]")


def documented() -> Iterator[tuple[str, Any]]:
    """What fisopt exports and documents itself, with the methods of classes."""
    for module in MODULES:
        for name in getattr(module, "__all__", None) or vars(module):
            one = inspect.unwrap(getattr(module, name))
            if not isinstance(one, type | FunctionType) or not one.__module__.startswith("fisopt"):
                continue
            yield name, one
            for method, held in vars(one).items() if isinstance(one, type) else ():
                if not method.startswith("_") and callable(getattr(held, "fget", held)):
                    yield f"{name}.{method}", held


def commands(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """The help of a command, of its options and of the commands in it."""
    yield name, MARKUP.sub("", EXAMPLES.sub("", command.help or ""))
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    for inner, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{name} {inner}")


def test_public_docstrings_are_plain() -> None:
    named = dict(documented())
    assert {"optimize", "TokenReduction", "Rewriter.edit", "check_pass", "Student.save"} <= {*named}
    found = []
    for name, one in named.items():
        text = INDENTED.sub("\n", inspect.getdoc(one) or "")
        found += prose.found(name, NAME.sub("", text))
    assert not found, "\n".join(found)


def test_help_texts_are_plain() -> None:
    assert texts.TUNE[:40] in dict(commands(typer.main.get_command(app), "fisopt"))["fisopt tune"]
    found = []
    for name, text in commands(typer.main.get_command(app), "fisopt"):
        found += prose.found(name, text)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["a file beside it", "The step is told by the pipeline."])
def test_a_docstring_that_is_not_plain_is_found(text: str) -> None:
    assert prose.found("name", NAME.sub("", f"Do it.\n\nArgs:\n    path: {text}\n"))
