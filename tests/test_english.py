"""Docstrings, ``--help`` and messages follow the style of the pages, see `tests/prose.py`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
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
WORDS = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")
PACKAGE = Path(fisopt.__file__).parent
NOT_READ = {PACKAGE / "cli" / "help.py", PACKAGE / "page" / "graph_svg.py"}
"""The texts of ``--help``, of which commands are cut out above, and SVG."""
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


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module that a user may read, with their lines: messages, notes, headings.

    Values within a text are shown as ``~``.  Docstrings are left out, and texts without two words.
    """
    tree = ast.parse(file.read_text())
    left_out = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in ast.walk(node)}
            parts = [p.value if isinstance(p, ast.Constant) else "~" for p in node.values]
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if WORDS.search(text):
            yield node.lineno, text


def test_messages_are_plain() -> None:
    """Errors, warnings, notes of reports and headings of tables follow the same rules."""
    said = []
    for file in sorted({*PACKAGE.rglob("*.py")} - NOT_READ):
        for line, text in texts_of(file):
            said.append((f"{file.relative_to(PACKAGE.parent)}:{line}", " ".join(text.split())))
    assert len(said) > 1000
    lines = prose.found("", "\n\n".join(f"{text} ~" for _, text in said))
    found = [re.split(r":(\d+): ", line, maxsplit=1)[1:] for line in lines]
    assert not found, "\n".join(f"{said[int(n) // 2][0]}: {what}" for n, what in found)


def test_texts_are_found(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        '"""A docstring here."""\nx = 3\ny = f"{x} beside the " + "more of it"\nz = "q"\n'
    )
    assert [*texts_of(file)] == [(3, "~ beside the "), (3, "more of it")]
