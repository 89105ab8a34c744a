"""Options that are not taken: every error is a FisoptError that names what was got and wanted."""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fisopt
from fisopt import FisoptError, Pass, Rewriter, Schedule
from fisopt.calibration import Target
from fisopt.passes.schedule import Measured

PACKAGE = Path(fisopt.__file__).parent


def raised(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every error that is raised by name; ``__getattr__`` must raise Python's."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.append((node.lineno, ast.unparse(made)))
        found += raised(node)
    return found


def test_no_module_raises_an_error_of_pythons_own() -> None:
    bare = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, name in raised(ast.parse(path.read_text())):
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                bare.append(f"{path.relative_to(PACKAGE)}:{line} {name}")
    assert not bare


@dataclass(frozen=True)
class Users(Pass):
    """A pass from outside."""

    level: int

    def run(self, rewriter: Rewriter) -> None:
        rewriter.note(str(self.level))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (fisopt.FrameInterleave, {"strid": 2}, "no option 'strid'; did you mean stride"),
        (fisopt.TokenReduction, {"quary": 0.5}, "no option 'quary'; did you mean query"),
        (fisopt.TileAttention, {"masks": 2}, "no option 'masks'; did you mean mask"),
        (fisopt.RulePass, {"rule": ()}, "no option 'rule'; did you mean rules"),
        (fisopt.SlidingWindow, {"radious": 1}, "no option 'radious'; did you mean radius"),
        (fisopt.TileMask, {}, "TileMask: missing a required argument: 'k'; options are k"),
        (fisopt.FrameTable, {"row": ()}, "did you mean rows"),
        (fisopt.MaskTable, {"mask": {}}, "did you mean masks"),
        (fisopt.ModelSpec, {"block": (), "grid": (1, 1, 1)}, "did you mean blocks"),
        (fisopt.ModelSpec, {"blocks": ("a.*",)}, "missing a required argument: 'grid'"),
        (fisopt.Rule, {"name": "r", "patern": None}, "did you mean pattern"),
        (fisopt.PassManager, {"passs": ()}, "did you mean passes"),
        (fisopt.Recipe, {"passe": ()}, "did you mean passes"),
        (Schedule, {"querry": None}, "did you mean query"),
        (Measured, {"stepz": 1}, "Measured has no option 'stepz'"),
        (Target, {"ratios": 0.5}, "did you mean ratio"),
        (Users, {"levl": 1}, "Users has no option 'levl'; did you mean level"),
        (Users, {}, "Users: missing a required argument: 'level'"),
    ],
)
def test_an_option_that_does_not_exist_or_is_missing(
    make: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FisoptError, match=message) as error:
        make(**options)
    assert isinstance(error.value, TypeError), "as Python says it, for those who catch that"


def test_too_many_options_by_place() -> None:
    with pytest.raises(FisoptError, match="SlidingWindow: too many positional arguments"):
        fisopt.SlidingWindow(1, 2)  # type: ignore[call-arg]


def test_constructors_are_as_they_were() -> None:
    """Their signature is that of the options; copies and pickles need no options."""
    assert list(inspect.signature(fisopt.SlidingWindow).parameters) == ["radius"]
    for made in (fisopt.SlidingWindow(2), fisopt.TileAttention(table={"a": 2}), Users(3)):
        assert copy.deepcopy(made) == made
        assert pickle.loads(pickle.dumps(made)) == made
