"""Read files that nobody vouches for: regular ones, of a bounded size, as plain values.

Text, JSON and YAML all come through here.  What is returned is made of dicts, lists, strings,
booleans, None and numbers that fit 64 bits, a bounded number of them and nested a bounded number
of times; reading it takes seconds and some hundred megabytes at most, whatever the file holds.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import yaml

from fisopt.errors import FileError, FisoptError, shown

MIB = 1 << 20
LARGEST = 64 * MIB
"""Bytes of a file of text, JSON or safetensors, where a reader asks for no other bound."""
LARGEST_YAML = 2 * MIB
"""Bytes of a YAML file; it is read a hundred times more slowly."""
DEEPEST = 64
"""How far values are nested."""
MOST = 4_000_000
"""Values in a JSON text."""
MOST_YAML = 200_000
"""Values in a YAML text, those behind an alias counted each time."""
LONGEST_NUMBER = 400
"""Characters of a number."""


class MalformedError(FisoptError, ValueError):
    """A text is not of the form that it should be; its reader says which file it is."""


@contextmanager
def opened(path: Path | str, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file; a pipe or a device would wait, or end never.

    Args:
        path: the file.
        most: its bytes, if they are bounded.

    Raises:
        FileError: it is not there, is no regular file, is too large, or may not be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as held:
            found = os.fstat(held.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f"{path} cannot be read: it is no regular file")
            if most is not None and found.st_size > most:
                raise FileError(
                    f"{path} cannot be read: got {found.st_size:,} bytes, wanted at most {most:,}"
                )
            yield held
    except FisoptError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be read: {why}") from error


def _at_once(path: str, flags: int) -> int:
    """Open a pipe too without waiting for somebody who writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def is_name(name: object) -> bool:
    """Whether a file names another one that is beside it, and not a place elsewhere."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


def check_file(path: Path | str, most: int = LARGEST) -> None:
    """Raise FileError unless a library may open a file: it is regular and not too large."""
    with opened(path, most):
        pass


def read_bytes(path: Path | str, most: int = LARGEST) -> bytes:
    """The bytes of a file.

    Raises:
        FileError: see `opened`.
    """
    with opened(path, most) as file:
        return file.read(most + 1)


def read_text(path: Path | str, most: int = LARGEST) -> str:
    """The text of a file.

    Raises:
        FileError: see `opened`.
        MalformedError: it is not UTF-8.
    """
    return _text(read_bytes(path, most))


def read_json(path: Path | str, most: int = LARGEST) -> Any:
    """The value of a JSON file.

    Raises:
        FileError: see `opened`.
        MalformedError: see `json_value`.
    """
    return json_value(read_bytes(path, most))


def read_yaml(path: Path | str) -> Any:
    """The value of a YAML file.

    Raises:
        FileError: see `opened`.
        MalformedError: see `yaml_value`.
    """
    return yaml_value(read_text(path, LARGEST_YAML))


def json_value(text: str | bytes, most: int = MOST) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedError: it is not JSON, is nested too far, or has too many or too large values.
    """
    text = _text(text) if isinstance(text, bytes) else text
    if sum(map(text.count, ",[{")) > most:  # before anything is made of it
        raise MalformedError(f"of more than {most:,} values")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise MalformedError(f"nested more than {DEEPEST} times") from error
    except ValueError as error:
        raise MalformedError(f"not JSON: {error}") from error
    check_value(value)
    return value


def yaml_value(text: str) -> Any:
    """The value of a YAML text; it may hold dates, which no reader takes.

    Raises:
        MalformedError: it is not YAML, is nested too far, or has too many or too large values.
    """
    if len(text) > LARGEST_YAML:
        raise MalformedError(f"of more than {LARGEST_YAML:,} characters")
    try:
        _check_nodes(text)
        value = yaml.load(text, Loader=_Plain)  # which makes plain values only
    except MalformedError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise MalformedError(f"not YAML: {error}") from error
    check_value(value)
    return value


def check_readable(
    path: Path | str, text: str, value: Callable[[str], Any], error: type[FisoptError]
) -> None:
    """Refuse a text that is about to be written and that its reader would not take.

    Args:
        path: where it goes.
        text: the text.
        value: reads it: `json_value` or `yaml_value`.
        error: what is raised.

    Raises:
        FisoptError: an ``error``; it has too many or too large values.
    """
    try:
        value(text)
    except MalformedError as reason:
        raise error(
            f"{path} is not written, since it could not be read: it is {reason}"
        ) from reason


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def check_value(value: Any) -> None:
    """Insist on bounded depth, numbers of 64 bits, and strings that can be written.

    Raises:
        MalformedError: one is not so.
    """
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise MalformedError(f"nested more than {DEEPEST} times")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                _check_string(item)
            elif type(item) is int and not -(1 << 63) <= item < 1 << 64:
                raise MalformedError(f"beyond 64 bits: it has the number {shown(item)}")
        level, depth = below, depth + 1


def _check_string(text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"not Unicode: it has the text {shown(text)}") from error


def _check_nodes(text: str) -> None:
    """Count the values of a YAML text before they are made."""
    count = 0
    counts: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Plain):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in counts:
                raise MalformedError(f"not YAML: *{event.anchor} names no value before it")
            count += counts[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                counts[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count))
            count += 1
            if event.anchor:
                counts.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                counts[anchor] = count - before
        if len(open_) > DEEPEST:
            raise MalformedError(f"nested more than {DEEPEST} times")
        if count > MOST_YAML:
            raise MalformedError(f"of more than {MOST_YAML:,} values")


_NAMES = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _NAMES}


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's plain values: no merges, no sets, nothing that a tag names."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in known if tag in _TAGS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in _TAGS
    }

    def construct_scalar(self, node: Any) -> Any:
        """Refuse numbers whose digits alone would take long."""
        text = super().construct_scalar(node)
        if _NUMBER.search(node.tag) and len(text) > LONGEST_NUMBER:
            raise MalformedError(f"beyond 64 bits: it has the number {shown(text)}")
        return text


_NUMBER = re.compile(r":(int|float)$")
