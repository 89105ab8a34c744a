"""Lines of a model: which of them ran an operator, and where two graphs of it part."""

from __future__ import annotations

import linecache
import os
import sys
from itertools import zip_longest
from pathlib import Path
from types import FrameType

import torch
from torch import fx

LINE = "fisopt.line"
"""Where a node says the file and the line of the model that it was traced at."""
SAME_OPERATORS = (
    "A loop or a branch of the model follows the number of tokens, as one over chunks of queries, "
    "each with a range of the keys, does; let it not, or write it as one attention with attn_mask"
)
"""What to do about a model that runs other operators on other numbers of tokens."""
_TRACER = Path(__file__).with_name("tracing")
_NOT_THEIRS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, _TRACER))
_LONGEST = 80


def running_line() -> tuple[str, int] | None:
    """The innermost line that runs now and is neither torch's nor the tracer's, None without."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def parting(one: fx.Graph, other: fx.Graph) -> str:
    """The first operators in which two graphs of a model differ, and their lines if known."""
    for a, b in zip_longest(one.nodes, other.nodes):
        if a is None or b is None or _kind(a) != _kind(b):
            names = ["nothing" if n is None or n.op == "output" else str(n.target) for n in (a, b)]
            lines = dict.fromkeys(line for n in (a, b) if n is not None and (line := line_of(n)))
            at = f", at {' and '.join(lines)}" if lines else ""
            return f"{' in the place of '.join(names)}{at}"
    return "the same operators on other tensors"


def same_operators(one: fx.Graph, other: fx.Graph) -> bool:
    """Whether two graphs run the same operators in the same order."""
    return [_kind(n) for n in one.nodes] == [_kind(n) for n in other.nodes]


def _kind(node: fx.Node) -> tuple[str, object]:
    return node.op, node.target if node.op == "call_function" else ""


def line_of(node: fx.Node) -> str:
    """Where a node was traced, as ``file:line: text``; empty if that is not known."""
    where = node.meta.get(LINE)
    if where is None:
        return ""
    text = linecache.getline(*where).strip()
    return f"{where[0]}:{where[1]}: {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"
