"""docs/compatibility.md: every cell names a test, and the test is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
FOUND = ("works", "refused by name", "translated", "torch's choice, a line of the report")
"""How a cell begins."""
TOOLS = (
    "LoRA",
    "torchao",
    "quanto",
    "GGUF",
    "bitsandbytes",
    "attention backends",
    "attention operators",
    "offloading of whole models",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
    "layerwise casting",
    "enable_cache",
    "cache-dit",
    "guiders",
    "modular pipelines",
    "fisopt.restore",
    "deepcopy",
    "pickle",
    "torch.save",
    "spawn",
    "torch.compile",
    "pipe.to(dtype)",
    "share a transformer",
)
"""What the page must speak of."""


def rows() -> list[list[str]]:
    """The rows of the table: a tool, before `optimize`, after it."""
    lines = (ROOT / "docs" / "compatibility.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


@cache
def functions_in(path: str) -> set[str]:
    """The test functions of a file, and those of its classes."""
    tree = ast.parse((ROOT / path).read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_cell_names_a_test_that_is_there(row: list[str]) -> None:
    assert len(row) == 3, "a tool, before, after"
    for cell in row[1:]:
        assert cell.startswith(FOUND), cell
        named = TEST.findall(cell)
        assert named, f"no test: {cell}"
        for path, name in named:
            assert name.startswith("test_")
            assert name in functions_in(path), f"{path} has no {name}"


def test_no_tool_is_left_out() -> None:
    tools = " ".join(row[0] for row in rows())
    assert not [tool for tool in TOOLS if tool not in tools]
