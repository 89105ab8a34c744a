"""Options that are not taken: every error is a FisoptError that names what was got and wanted."""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fisopt
from fisopt import FisoptError, Pass, Rewriter, Schedule
from fisopt.passes.presets import PASSES
from fisopt.passes.reduction.measured import Measured
from fisopt.tuning.calibrate import Target
from fisopt.tuning.quality import compare
from tests.zoo import zoo

GRID = (5, 2, 3)
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
        (fisopt.optimize, {"passs": ()}, "optimize has no option 'passs'; did you mean passes"),
        (fisopt.capture, {}, "capture: missing a required argument: 'model'"),
        (fisopt.export, {"portabel": True}, "did you mean portable"),
        (fisopt.load, {"trusted": "data"}, "did you mean trust"),
        (fisopt.verify, {}, "verify: missing a required argument: 'program'"),
        (fisopt.format_graph, {"block": True}, "did you mean blocks"),
        (fisopt.predicted_ratio, {"dens": None}, "did you mean dense"),
        (fisopt.calibrate, {"target": 0.5}, "did you mean target_"),
        (fisopt.search_masks, {"treshold": 0.5}, "did you mean threshold"),
        (fisopt.models.build, {}, "missing a required argument: 'name'"),
        (fisopt.models.example_inputs, {"hight": 64}, "did you mean height"),
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


WRONG: tuple[Any, ...] = (
    2.0, float("nan"), float("inf"), b"x", object(), np.int64(2), torch.tensor(2), len,
    fisopt.FrameInterleave, {1: object()}, [[[[]]]],
)  # fmt: skip
"""Values that no option takes."""
OPTIONS: dict[Any, tuple[str, ...]] = {
    fisopt.FrameInterleave: (
        "stride", "blocks", "steps", "fill", "kv", "scope"
    ),
    fisopt.TokenReduction: (
        "query", "value", "destination_stride", "cache_steps", "mode", "seed", "schedule", "steps"
    ),
    fisopt.TileAttention: ("mask", "table", "blocks", "steps"),
    fisopt.TileMask: ("k",),
    fisopt.SlidingWindow: ("radius",),
    fisopt.RadialDecay: ("near",),
    fisopt.FrameTable: ("rows",),
    fisopt.MaskTable: ("masks",),
    fisopt.RulePass: ("rules",),
    fisopt.PassManager: ("passes",),
    Target: ("ratio", "error"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "option"), [(make, option) for make, each in OPTIONS.items() for option in each]
)
def test_an_option_of_a_wrong_type(make: Any, option: str) -> None:
    for value in WRONG:
        with pytest.raises(FisoptError) as error:
            make(**{option: value})
        assert option in str(error.value) or "mask must be" in str(error.value)
        assert len(str(error.value)) < 400, "no value floods the screen"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fisopt.TokenReduction(schedule=3), "schedule must be a Schedule or .* got 3"),
        (lambda: fisopt.TileAttention(table=3), "table must be a MaskTable.* got 3"),
        (lambda: fisopt.TileAttention(steps=()), r"steps must be numbers and slices .* got \(\)"),
        (lambda: fisopt.TileAttention(mask=fisopt.TileMask), r"a FrameMask, got .* write TileMask"),
        (lambda: fisopt.TileAttention(table="no.json"), r"no\.json cannot be read: No such file"),
        (lambda: fisopt.TokenReduction(schedule="no.yaml"), r"no\.yaml cannot be read: No such"),
        (lambda: fisopt.TokenReduction(destination_stride=2), "must be three ints .* got 2"),
        (lambda: fisopt.FrameInterleave(kv="anchor"), "one of .*got 'anchor'; did you mean anch"),
        (lambda: fisopt.FrameInterleave(fill=10**5000), "fill must be one of .* got one int"),
        (lambda: fisopt.ModelSpec(blocks=None, grid=GRID), "blocks must be a tuple .* got None"),
        (lambda: fisopt.ModelSpec(blocks=(1,), grid=GRID), r"blocks must be .* got \(1,\)"),
        (lambda: fisopt.ModelSpec(blocks=("a",), grid=5), "grid must be .* got 5"),
        (lambda: fisopt.ModelSpec(("a",), GRID, "no"), "prepare must be a function, got 'no'"),
        (lambda: fisopt.MaskTable({}, measured=3), "measured must be a mapping, got 3"),
        (lambda: fisopt.MaskTable(("a", 2)), r"masks must be a mapping .* got \('a', 2\)"),
        (lambda: Schedule(3, 3, (), ()), r"got query=3, wanted ints \[blocks\]\[steps\]"),
        (lambda: Schedule(((1,),), (("1",),), (), ()), "got value="),
        (lambda: Schedule(((1,),), ((1,),), {6: 0.4}, ()), "got query_thresholds="),
        (lambda: Schedule(((1,),), ((1,),), (), (), "here"), "measured: got 'here'"),
        (lambda: fisopt.RulePass(rules=["x"]), r"rules must be a list of Rule, got \['x'\]"),
        (lambda: fisopt.Rule("r", len, "x", bool), "rule 'r': replacement must be a function"),
        (lambda: fisopt.PassManager([]).run(3), "got int, wanted a Program"),
        (lambda: fisopt.PassManager(["fis-a"]), "Pass objects, got .'fis-a'"),
        (lambda: fisopt.PassManager(fisopt.FrameInterleave()), "must be a list of Pass objects"),
        (lambda: fisopt.published_reduction(["mochi-1"], "t"), "unknown published reduction .'moc"),
        (lambda: fisopt.published_reduction("mochi-1", None), "table: got None, wanted a path"),
        (lambda: fisopt.load(None), "load: path: got None, wanted a path"),
        (lambda: Schedule.load(3), r"Schedule\.load: path: got 3, wanted a path"),
        (lambda: fisopt.MaskTable.load(None), r"MaskTable\.load: path: got None"),
        (lambda: fisopt.Recipe.load(b"x"), r"Recipe\.load: path: got b'x'"),
        (lambda: fisopt.Recipe.load("no.yaml"), r"no\.yaml cannot be read: No such file"),
        (lambda: fisopt.verify(3), "got int, wanted a Program"),
        (lambda: fisopt.format_graph(None), "got NoneType, wanted a Program"),
        (lambda: fisopt.program_cost(nn.Linear(1, 1)), "got Linear, wanted a Program"),
        (lambda: fisopt.FrameInterleave()(nn.Linear(1, 1)), "got Linear, wanted a Program"),
        (lambda: compare(None, None), "compare: got NoneType .* wanted two clips"),
        (lambda: fisopt.axes_of(3), "axes_of: got 3, wanted a node"),
        (lambda: fisopt.FrameMask(), "FrameMask is abstract; subclass it, with table"),
        (lambda: fisopt.Pass(), "Pass is abstract; subclass it, with run"),
        (lambda: fisopt.TileMask(2).table("5"), "frames: got '5', wanted 1 or more"),
        (lambda: fisopt.RadialDecay(2).table(-1), "frames of a mask: got -1, wanted 1 or more"),
        (lambda: fisopt.Rule("r", len, len, bool), "rule 'r': the pattern cannot be traced: Asser"),
        (lambda: fisopt.search_masks(None, ["a"], steps=1), "give either threshold .* or target_ratio"),
        (lambda: fisopt.calibrate(None, ["a"], steps=1), "a target ratio .--keep. or a target error"),
        (lambda: fisopt.models.build("wan", heads=1), "cannot be built with {'heads': 1} on"),
        (lambda: fisopt.models.build("wan", "gpu9"), "cannot be built with {} on 'gpu9' in"),
        (lambda: fisopt.models.build("wan", dtype="half"), "on 'meta' in 'half': invalid dtype"),
        (lambda: fisopt.models.build(3), "unknown model 3; the nearest names are"),
        (lambda: inputs(height="64"), "height: got '64', wanted 1 or more"),
        (lambda: inputs(num_frames=5.0), r"frames: got 5\.0, wanted 1 or more"),
        (lambda: inputs(batch=1.5), r"batch: got 1\.5, wanted 1 or more"),
        (lambda: inputs(seed="a"), "seed: got 'a', wanted 0 or more"),
        (lambda: inputs(device="gpu0"), "device: got 'gpu0', wanted one such as"),
        (lambda: inputs(dtype="fp16"), "dtype: got 'fp16', wanted one of torch's"),
        (lambda: inputs(context=5), "context: got 5, wanted lengths by stream"),
        (lambda: inputs(context={"text": "5"}), "context: text: got '5'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FisoptError, match=message):
        make()


def inputs(**given: Any) -> dict[str, Any]:
    """Example inputs of a published model, small."""
    size: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 5}
    return fisopt.models.example_inputs("wan2.1-1.3b", **{**size, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"passes": None}, "passes must be a list, got None"),
        ({"passes": iter([])}, r"must be a list, got <list_iterator"),
        ({"passes": {fisopt.FrameInterleave()}}, r"must be a list, got \{FrameInterleave"),
        ({"passes": {}}, "names no transformer"),
        ({"passes": [None]}, r"got None \(NoneType\)"),
        ({"passes": [[fisopt.FrameInterleave()]]}, r"\(list\); write one list"),
        ({"passes": ["FrameInterlaeve"]}, "'FrameInterlaeve'; did you mean FrameInterleave"),
        ({"passes": ["tokenreduction"]}, "did you mean TokenReduction"),
        ({"passes": ["FrameInterlaeve(stride=2)"]}, "did you mean FrameInterleave"),
        ({"passes": ["fis-balance"]}, "'fis-balance'; did you mean fis-balanced"),
        ({"passes": ["FIS_FAST"]}, "did you mean fis-fast"),
        ({"passes": ["TileAttention"]}, r"write passes=\[fisopt.TileAttention\(\)\]"),
        ({"passes": ["TileAttention(mask=3)"]}, r"\[fisopt.TileAttention\(mask=3\)\]"),
        ({"passes": ["x" * 9999]}, r"unknown pass or preset 'x+\.\.\."),
        ({"passes": ["fis-fast", "fis-fast"]}, "stride=3.* is given twice"),
        ({"passes": ["fis-fast", fisopt.FrameInterleave(3)]}, "is given twice"),
        ({"backend": "inducter"}, "got 'inducter'; did you mean inductor"),
        ({"backend": None}, "backend must be one of .* got None"),
        ({"strict": "no"}, "strict must be True or False, got 'no'"),
        ({"spec": ("layers.*",)}, r"spec must be a fisopt\.ModelSpec, got \('layers"),
        ({"recipe": 3}, "recipe: got 3, wanted a Recipe, its path"),
        ({"recipe": "confg"}, "confg cannot be read"),
        ({"example_inputs": [1]}, "got list, wanted the dict"),
    ],
)
def test_optimize_refuses(given: dict[str, Any], message: str) -> None:
    """Nothing is captured for it."""
    model = zoo()["wan"].model
    with pytest.raises(FisoptError, match=message):
        fisopt.optimize(model, **{"backend": "eager", **given})


def test_other_verbs_refuse(tmp_path: Path) -> None:
    model = zoo()["wan"].model
    with pytest.raises(FisoptError, match=r"capture takes an nn\.Module, got 3"):
        fisopt.capture(3, inputs())  # type: ignore[arg-type]
    optimised = fisopt.optimize(model, backend="eager")
    with pytest.raises(FisoptError, match="force must be True or False, got 'no'"):
        fisopt.export(optimised, tmp_path / "a.pt2", force="no")  # type: ignore[arg-type]
    with pytest.raises(FisoptError, match="export: path: got None"):
        fisopt.export(optimised, None)  # type: ignore[arg-type]
    with pytest.raises(FisoptError, match="no transformer"):
        fisopt.optimize(torch.zeros(2))


def test_recipes_name_the_nearest_pass_and_preset() -> None:
    """And refuse what a pass refuses, in the name of the recipe."""
    model = zoo()["wan"].model
    plain = fisopt.Recipe.of(model, ["fis-fast"]).plain()
    assert fisopt.Recipe.from_plain(plain, "here").passes == fisopt.PRESETS["fis-fast"][1]
    for name, options, message in (
        ("FrameInterlaeve", {}, "'FrameInterlaeve' is not known here; did you mean FrameInterl"),
        ("fis-balance", {}, "did you mean fis-balanced .*a preset is written as its passes"),
        ("FrameInterleave", {"strid": 2}, "FrameInterleave .* no option 'strid'; did you mean"),
        ("FrameInterleave", {"stride": "2"}, "rejects its options: .* got '2'"),
        ("TokenReduction", {"schedule": 3}, "rejects its options: .* got 3"),
        ("TileAttention", {"mask": {"mask": "TileMsk", "k": 2}}, "no mask: .* mean TileMask"),
    ):
        plain["passes"] = [{"name": name, "options": options}]
        with pytest.raises(fisopt.RecipeError, match=message):
            fisopt.optimize(model, recipe=plain)
    with pytest.raises(FisoptError, match="did you mean FrameInterleave"):
        fisopt.Recipe.of(model, ["FrameInterlaeve"])
    with pytest.raises(FisoptError, match=r"got 3 \(int\)"):
        fisopt.Recipe.of(model, [3])  # type: ignore[list-item]


def test_text_can_name_every_pass_that_comes_with_fisopt() -> None:
    exported = {name: getattr(fisopt, name) for name in fisopt.__all__}
    passes = {n for n, v in exported.items() if isinstance(v, type) and issubclass(v, Pass)}
    assert passes - {"Pass", "BlockPass", "RulePass"} == set(PASSES), "text cannot say a function"
