"""Schedules: thresholds, files, what is refused, and runs against the loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import fisopt
from fisopt import FileError, PreconditionError, Schedule, ScheduleError, TokenReduction
from fisopt.cli.expressions import parse_pass
from fisopt.errors import OptionError
from fisopt.passes.reduction.features import FEATURES
from fisopt.passes.reduction.measured import Measured
from fisopt.passes.token_reduction import Reduction
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.pass_base import Step
from tests import plain_dit
from tests.conftest import plain_captured
from tests.passes.dense_reduction import Attend, Options, reduced
from tests.plain_dit import FORMS

GRID = (5, 2, 3)
FORM = FORMS["fused"]
TIERS = (((1, 7, 9, 3), (5, 8, 0, 9), (9, 9, 9, 9)), ((0, 0, 8, 8), (0, 9, 9, 2), (8, 8, 8, 8)))
LIMITS = (((5, 0.3), (7, 0.8)), ((8, 0.3),))


def schedule(**measured: Any) -> Schedule:
    return Schedule(*TIERS, *LIMITS, Measured(**{"source": "s.yaml", **measured}))


def write(folder: Path, text: str, **tables: Any) -> Path:
    held = {name: torch.as_tensor(table) for name, table in tables.items()}
    if held:
        save_file(held, folder / "tiers.safetensors")
    path = folder / "limits.yaml"
    path.write_text(text)
    return path


@given(
    tiers=st.lists(st.integers(0, 19), min_size=6, max_size=6),
    limits=st.dictionaries(st.integers(0, 19), st.sampled_from([0.1, 0.5, 0.9]), max_size=4),
)
def test_the_largest_share_whose_threshold_is_met(
    tiers: list[int], limits: dict[int, float]
) -> None:
    table = (tuple(tiers[:3]), tuple(tiers[3:]))
    made = Schedule(table, table, tuple(limits.items()), ())
    for i, tier in enumerate(tiers):
        met = [ratio for least, ratio in limits.items() if tier >= least]
        assert made.ratio("query", i // 3, i % 3) == max(met, default=0)
        assert made.ratio("value", i // 3, i % 3) == 0


def test_files_as_the_authors_give_them(tmp_path: Path) -> None:
    """Other tables are left out; comments and the order of thresholds do not matter."""
    text = (
        "# # base\n# q:\n#   7: 0.9\n\n# fast\nq:\n  7: 0.8\n  5: 0.3\nv:\n  8: 0.3\nh:\n  0: 0.0\n"
    )
    path = write(tmp_path, text, q=TIERS[0], v=TIERS[1], h=TIERS[0], k=TIERS[1])
    loaded = Schedule.load(path, table=tmp_path / "tiers.safetensors")
    for feature in ("query", "value"):
        for step in range(4):
            assert loaded.ratios(feature, step) == schedule().ratios(feature, step)  # type: ignore[arg-type]
    step = TokenReduction(destination_stride=(2, 1, 1), schedule=loaded)
    assert step.at(Step(1, 4)) is not None


def test_save_and_load(tmp_path: Path) -> None:
    made = schedule(model="PlainDiT", grid=GRID, prompts=3, seed=7, target="cost .7")
    made.save(tmp_path / "new" / "s.yaml", {"measured": torch.rand(3)})
    loaded = Schedule.load(tmp_path / "new" / "s.yaml")
    assert loaded.measured.source.endswith("s.yaml")
    assert (loaded.query, loaded.value) == (made.query, made.value)
    assert {**vars(loaded.measured), "source": "s.yaml"} == vars(made.measured)
    assert (loaded.query_thresholds, loaded.value_thresholds) == LIMITS
    assert TokenReduction(schedule=str(tmp_path / "new" / "s.yaml")).schedule == loaded


@pytest.mark.parametrize(
    ("text", "tables", "message"),
    [
        ("q: {7: 0.9", {"q": TIERS[0], "v": TIERS[1]}, "is not YAML"),
        ("[1, 2]", {"q": TIERS[0], "v": TIERS[1]}, "is no schedule: got list; wanted {q:"),
        ("steps: 3", {"q": TIERS[0], "v": TIERS[1]}, r"is no schedule: got \['steps'\]"),
        ("q: [1]", {"q": TIERS[0], "v": TIERS[1]}, r"got thresholds \[1\]"),
        ("q: {a: 0.3}", {"q": TIERS[0], "v": TIERS[1]}, "got 'a': 0.3 for query"),
        ("k: {0: 0, 6: 0.3}", {"q": TIERS[0], "v": TIERS[1]}, "got shares for 'k'"),
        ("q: {3: 1.5}", {"q": TIERS[0], "v": TIERS[1]}, r"must be in \[0, 1\), got 1.5"),
        ("measured: {who: me}", {"q": TIERS[0], "v": TIERS[1]}, "wanted some of"),
        (
            "measured: {grid: 3}",
            {"q": TIERS[0], "v": TIERS[1]},
            r"wanted \[frames, rows, columns\]",
        ),
        ("q: {3: .5}", {"weight": TIERS[0]}, r"no table 'q' for query; it holds \['weight'\]"),
        ("q: {3: .5}", {"q": TIERS[0], "v": [[0.5]]}, "is .* of torch.float32, wanted integers"),
        ("q: {3: .5}", {"q": TIERS[0], "v": [1, 2]}, r"table 'v' is \[2\]"),
        ("q: {3: .5}", {"q": TIERS[0], "v": [[1, 2]]}, "wanted two of one shape"),
    ],
)
def test_files_of_another_form(tmp_path: Path, text: str, tables: Any, message: str) -> None:
    path = write(tmp_path, text, **tables)
    with pytest.raises(ScheduleError, match=message):
        Schedule.load(path, tmp_path / "tiers.safetensors")


def test_truncated_table(tmp_path: Path) -> None:
    path = write(tmp_path, "table: tiers.safetensors\nq: {3: .5}", q=TIERS[0], v=TIERS[1])
    assert Schedule.load(path).steps == 4
    table = tmp_path / "tiers.safetensors"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(ScheduleError, match=r"tiers\.safetensors is not a complete safetensors"):
        Schedule.load(path)
    table.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ScheduleError, match="is not a complete safetensors file"):
        Schedule.load(path)
    table.unlink()
    with pytest.raises(FileError, match="cannot be read: No such file"):
        Schedule.load(path)
    path.write_text("q: {3: .5}")
    with pytest.raises(ScheduleError, match="names no table; pass table="):
        Schedule.load(path)


def test_steps() -> None:
    """A shorter run reads the table at the same places; a longer one is refused."""
    made = schedule()
    assert [made.column(Step(i, 4)) for i in range(4)] == [0, 1, 2, 3]
    assert [made.column(Step(i, 2)) for i in range(2)] == [0, 3]
    for step in (Step(0, 5), Step(4, 4)):
        with pytest.raises(ScheduleError, match=r"s\.yaml has tiers for 4 steps, the run needs 5"):
            made.column(step)
    with pytest.raises(ScheduleError, match=r"needs the number of steps .*generation\(num_steps\)"):
        made.column(Step(0))
    with pytest.raises(ScheduleError, match="has tiers for 4 steps, the run needs 6"):
        TokenReduction(schedule=made, cache_steps=3).at(Step(5, 6))


def test_a_run_that_starts_between_noise_and_video_reads_its_own_place() -> None:
    """Two steps of four: those of the table's second half; a cached match that of its first."""
    step = TokenReduction(schedule=schedule())
    assert [step.at(Step(i, 2, 2)) for i in range(2)] == [step.at(Step(i, 4)) for i in (2, 3)]
    assert step.at(Step(0, 2, 2)) != step.at(Step(0, 2))
    with pytest.raises(ScheduleError, match="has tiers for 4 steps, the run needs 5"):
        step.at(Step(0, 2, 3))


def test_schedule_and_ratios() -> None:
    with pytest.raises(ValueError, match="the schedule sets the dropped shares"):
        TokenReduction(query=0.5, schedule=schedule())


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"model": "WanModel"}, "s.yaml: measured on WanModel, this is PlainDiT"),
        ({"grid": (9, 4, 4)}, "s.yaml: measured on 9x4x4 tokens, these are 5x2x3"),
    ],
)
def test_measured_on_another(measured: Any, message: str) -> None:
    _, program = plain_captured(FORM)
    with pytest.raises(PreconditionError, match=message):
        TokenReduction(schedule=schedule(**measured))(program)
    fit = schedule(model="PlainDiT", grid=GRID)
    assert TokenReduction(schedule=fit)(program).modified


def test_blocks() -> None:
    _, program = plain_captured(FORM)
    few = Schedule(TIERS[0][:2], TIERS[1][:2], *LIMITS, Measured("s.yaml"))
    with pytest.raises(PreconditionError, match=r"s\.yaml: query ratios are given for 2 blocks"):
        TokenReduction(schedule=few)(program)


def test_another_grid_that_is_open_is_a_line_of_the_report() -> None:
    _, program = plain_captured(FORM)
    result = TokenReduction(schedule=schedule(grid=(9, 4, 4), any_grid=True))(program)
    assert "schedule s.yaml is for 9x4x4 tokens, these are 5x2x3" in result.notes[-1]
    here = TokenReduction(schedule=schedule(grid=GRID, any_grid=True))(program)
    assert not any("is for" in note for note in here.notes)
    assert Measured.from_plain(Measured(any_grid=True).plain()).any_grid


@pytest.mark.parametrize("layout", ["beside", "repository"])
@pytest.mark.parametrize("number", ["_0", "_1", "_12"])
def test_a_table_is_found_by_the_name_that_the_authors_give_it(
    tmp_path: Path, layout: str, number: str
) -> None:
    """A file of thresholds that names no table, alone on the command line."""
    configs = tmp_path if layout == "beside" else tmp_path / "configs"
    tables = tmp_path if layout == "beside" else tmp_path / "schedulers"
    for folder in (configs, tables):
        folder.mkdir(exist_ok=True)
    path = write(configs, "# base\nq:\n  7: 0.8 \n  5: 0.3\nv:\n  8: 0.3\n")
    path = path.rename(configs / f"model-2b_cache3{number}.yaml")
    held = {"q": torch.tensor(TIERS[0]), "v": torch.tensor(TIERS[1])}
    save_file(held, tables / "euclidean_model-2b_cache3.safetensors")
    save_file(
        {"q": torch.ones(1, 1), "v": torch.ones(1, 1)}, tables / "euclidean_other.safetensors"
    )
    step = parse_pass(f"TokenReduction(schedule='{path}', destination_stride=(6, 2, 2))")
    assert isinstance(step, TokenReduction)
    assert isinstance(step.schedule, Schedule)
    for feature in FEATURES:
        assert step.schedule.ratios(feature, 1) == schedule().ratios(feature, 1)
    (tables / "euclidean_model-2b_cache3.safetensors").unlink()
    with pytest.raises(ScheduleError, match=r"names no table; .*euclidean_model-2b_cache3\.safet"):
        Schedule.load(path)


def test_schedule_and_table_as_options(tmp_path: Path) -> None:
    path = write(tmp_path, "q: {7: 0.8, 5: 0.3}\nv: {8: 0.3}", q=TIERS[0], v=TIERS[1])
    table = tmp_path / "tiers.safetensors"
    step = TokenReduction(schedule=path, table=table)
    assert step == TokenReduction(schedule=Schedule.load(path, table))
    assert step == parse_pass(f"TokenReduction(schedule={str(path)!r}, table={str(table)!r})")
    for other in (None, schedule()):
        with pytest.raises(OptionError, match=r"holds tiers without thresholds; give schedule="):
            TokenReduction(table=table, schedule=other)


@pytest.mark.parametrize("feature", ["q", "v"])
def test_thresholds_that_no_tier_reaches(tmp_path: Path, feature: str) -> None:
    """Mochi's thresholds begin at 10 and 14, HunyuanVideo's tiers end at 9."""
    limits = {"q": "q: {7: .9}", "v": "v: {8: .3}"} | {feature: f"{feature}: {{10: .7, 14: .8}}"}
    path = write(tmp_path, "\n".join(limits.values()), q=TIERS[0], v=TIERS[1])
    with pytest.raises(
        ScheduleError, match=r"from tier 10 on, and the highest tier of .* is 9: no"
    ):
        Schedule.load(path, tmp_path / "tiers.safetensors")
    path.write_text("q: {7: .9}\nv: {0: 0.0, 12: 0.0}")
    assert Schedule.load(path, tmp_path / "tiers.safetensors").blocks == 3


@pytest.mark.parametrize("missing", ["schedule", "table", "folder"])
def test_files_that_are_not_there(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, "table: tiers.safetensors\nq: {3: .5}", q=TIERS[0], v=TIERS[1])
    gone = {"schedule": path, "table": tmp_path / "tiers.safetensors", "folder": path}[missing]
    gone.unlink()
    if missing == "folder":
        gone.mkdir()
    with pytest.raises(FileError, match=f"{gone.name} cannot be read: (No such|Is a dir)"):
        TokenReduction(schedule=path)


def test_attention_cost() -> None:
    """The mean over blocks and steps is what the cost model counts step by step."""
    _, program = plain_captured(FORM)
    dense = program_cost(program).flops["self-attention"]
    for cache_steps in (1, 3):
        step = TokenReduction(
            destination_stride=(2, 1, 1), schedule=schedule(), cache_steps=cache_steps
        )
        counted = 0.0
        for i in range(4):
            now = step.at(Step(i, 4))
            counted += dense if now is None else _attention(now, program)
        cost = schedule().attention_cost(GRID, (2, 1, 1), cache_steps=cache_steps)
        assert counted / (4 * dense) == pytest.approx(cost)
    assert schedule().pairs(3) == {(0, 0), (0, 0.3), (0.3, 0), (0.8, 0), (0.8, 0.3)}


def _attention(step: Reduction, program: fisopt.Program) -> float:
    return program_cost(step(program).program).flops["self-attention"]


@pytest.mark.parametrize("redraw", [False, None])
@pytest.mark.parametrize("cache_steps", [1, 3])
def test_a_run_equals_the_loops(cache_steps: int, redraw: bool | None) -> None:
    """Ratios by block and step; within a period those of its first step, and its destinations."""
    model, program = plain_captured(FORM)
    inputs = plain_dit.inputs(FORM, *GRID, batch=2)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=GRID)
    stride = (2, 1, 1)
    step = TokenReduction(
        destination_stride=stride, schedule=schedule(), cache_steps=cache_steps, redraw=redraw
    )
    fast = fisopt.optimize(program, [step], inputs, backend="eager")
    groups: dict[Any, Any] = {}
    for index in range(4):
        since = index % cache_steps
        ratios = (schedule().ratios(f, index - since) for f in ("query", "value"))  # type: ignore[arg-type]
        if not since:
            groups.clear()
        draw = index // cache_steps if redraw is None else 0
        options = Options(*ratios, stride, draw=draw, search="near")
        attend = Attend(options, lambda _: GRID, front=False, groups=groups)
        with fast.cache_context("cond", step_index=index, num_inference_steps=4):
            got = fast(**inputs)["video"]
        with reduced(model, spec.blocks, attend):
            want = model(**inputs)["video"]
        assert float((got - want).abs().max()) <= 1e-5
