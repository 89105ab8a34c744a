"""What is chosen on a CPU, what on a GPU with and without measurements, and what the report says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import fisopt
from fisopt import FrameInterleave, Program
from fisopt.codegen import choose
from fisopt.codegen.choose import Candidates, Choice, choose_stage, decide
from fisopt.codegen.emit import cache, trial
from fisopt.codegen.emit.kernel import emit
from fisopt.codegen.emit.region import find_regions
from tests.zoo import zoo

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if there were a GPU: its name, and times that the test decides; returns the cache."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.delenv(choose.MEASURE, raising=False)
    monkeypatch.setenv(choose.EMIT, "1")
    monkeypatch.setattr(choose, "device_name", lambda _: "Some GPU 1")
    return tmp_path


def result(value: float = 1.0) -> Sequence[Tensor]:
    return [torch.full((3,), value)]


def timed(monkeypatch: pytest.MonkeyPatch, **times: float) -> list[str]:
    """Give candidates these times; returns the names in the order in which they are timed."""
    asked: list[str] = []

    def microseconds(run: object) -> float:
        name = run.__name__  # type: ignore[attr-defined]
        asked.append(name)
        return times[name]

    monkeypatch.setattr(choose, "_microseconds", microseconds)
    return asked


def candidates(wrong: bool = False, broken: bool = False) -> Candidates:
    def reference() -> Sequence[Tensor]:
        return result()

    def emitted() -> Sequence[Tensor]:
        if broken:
            raise RuntimeError("no such instruction")
        return result(2.0 if wrong else 1.0)

    return {"reference": reference, "emitted": emitted}


def test_a_cpu_runs_the_reference() -> None:
    choice = decide("region", choose.REGION, "key", CPU, candidates)
    assert (choice.chosen, choice.why) == ("reference", choose.ON_CPU)


def test_the_faster_one_is_remembered(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, reference=20.0, emitted=10.0)
    first = decide("region", choose.REGION, "key", GPU, candidates)
    assert first.chosen == "emitted"
    assert first.why == "measured on Some GPU 1: emitted 10 us, reference 20 us"
    assert asked == ["reference", "emitted"]
    assert decide("region", choose.REGION, "key", GPU, candidates) == first
    assert asked == ["reference", "emitted"], "measured again"
    timed(monkeypatch, reference=10.0, emitted=20.0)
    assert decide("region", choose.REGION, "other key", GPU, candidates).chosen == "reference"
    assert decide("region", choose.REGION, "key", GPU, candidates).chosen == "emitted"


def test_without_measurement_the_table_decides(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.MEASURE, "0")
    choice = decide("region", choose.REGION, "key", GPU, candidates)
    assert (choice.chosen, choice.why) == choose.REGION
    assert list(gpu.rglob("*.json")) == []

    def no_memory() -> Candidates:
        raise torch.OutOfMemoryError

    monkeypatch.delenv(choose.MEASURE)
    choice = decide("region", choose.REGION, "key", GPU, no_memory)
    assert choice.chosen == choose.REGION[0]
    assert "no memory" in choice.why


@pytest.mark.parametrize(
    ("options", "why"),
    [({"wrong": True}, "disagrees"), ({"broken": True}, "RuntimeError: no such instruction")],
)
def test_a_kernel_that_is_wrong_or_fails_loses(
    options: dict[str, bool], why: str, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, reference=20.0, emitted=10.0)
    with pytest.warns(RuntimeWarning, match=why):
        choice = decide("region", choose.REGION, "key", GPU, lambda: candidates(**options))
    assert choice.chosen == "reference"


@pytest.mark.parametrize("text", ["{", "[]", '{"key": {"emitted": 1.0}}', '{"key": 3}', "\0"])
def test_corrupt_timings_are_measured_again(
    text: str, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, reference=20.0, emitted=10.0)
    decide("region", choose.REGION, "key", GPU, candidates)
    (file,) = gpu.rglob("*.json")
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match="made again"):
        assert decide("region", choose.REGION, "key", GPU, candidates).chosen == "emitted"
    assert set(choose.remembered(file)) == {"key"}


def named(name: str) -> Callable[[], Sequence[Tensor]]:
    """A candidate of some name."""

    def candidate() -> Sequence[Tensor]:
        return result()

    candidate.__name__ = name
    return candidate


def run(x: Tensor, gate: Tensor) -> Tensor:
    return torch.nn.functional.silu(x * gate + x) * gate


def test_a_stage_on_a_gpu(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_fx(run, tracing_mode="fake")(torch.randn(4, 9), torch.randn(4, 9))
    monkeypatch.setattr(choose, "_device", lambda _: GPU)
    (region,) = find_regions(stage)
    kernel = emit(region)
    first, *others = trial.cuts(kernel)
    assert others
    for faster in ("reference", first, others[0]):
        names = dict.fromkeys(("reference", *trial.cuts(kernel)), 20.0) | {faster: 10.0}
        timed(monkeypatch, **names)
        made = {name: named(name) for name in names}
        monkeypatch.setattr(choose, "candidates", lambda *_, made=made: made)
        choices: list[Choice] = []
        chosen = choose_stage(stage, choices)
        assert [(c.what, c.chosen) for c in choices] == [(kernel.name, faster)]
        emitted = torch.ops.fisopt.emitted.default
        calls = [n.args[1] for n in chosen.graph.nodes if n.target is emitted]
        wanted = trial.cuts(kernel).get(faster)
        assert calls == ([] if wanted is None else [list(astuple(wanted))])
        for file in gpu.rglob("*.json"):
            file.unlink()


@pytest.mark.usefixtures("gpu")
def test_regions_are_left_alone_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_fx(run, tracing_mode="fake")(torch.randn(520, 9), torch.randn(520, 9))
    monkeypatch.setattr(choose, "_device", lambda _: GPU)
    monkeypatch.setattr(choose, "decide", lambda *_: pytest.fail("a region was looked at"))
    monkeypatch.delenv(choose.EMIT)
    choices: list[choose.Choice] = []
    for _ in range(2):
        assert choose_stage(stage, choices) is stage
    assert [str(c) for c in choices] == [f"every region: reference ({choose.LEFT_OUT})"]


@pytest.mark.usefixtures("gpu")
def test_operators_with_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = torch.ops.fisopt.gather_frames.default
    graph = fx.Graph()
    x, index = graph.placeholder("x"), graph.placeholder("index")
    x.meta["val"], index.meta["val"] = torch.randn(1, 10, 4), torch.tensor([0, 2])
    graph.output(graph.call_function(gather, (x, 1, index, 1, 2, 0, 0)))
    stage = fx.GraphModule(torch.nn.Module(), graph)

    def takes(*_: object) -> tuple[list[str], str]:
        return ["other", "kernel"], ""

    assert choose.choose_operators(stage, [], takes) == []
    (choice,) = choose.choose_operators(stage, [gather], takes)
    assert (choice.what, choice.chosen) == ("fisopt::gather_frames", "reference")
    monkeypatch.setattr(choose, "_device", lambda _: GPU)
    (choice,) = choose.choose_operators(stage, [gather], takes)
    assert choice.chosen == "other", "the first one"
    assert choice.why == f"{choose.UNMEASURED}; timed at its first call"
    wide = f"rows of {x.meta['val'].shape[-1]} are not taken"
    (choice,) = choose.choose_operators(stage, [gather], lambda _, args: (["kernel"], wide))
    assert choice.chosen == "kernel"
    assert choice.why.endswith(f"; {wide}")
    (choice,) = choose.choose_operators(stage, [gather], lambda _, args: ([], wide))
    assert str(choice) == "fisopt::gather_frames: reference (rows of 4 are not taken)"


def test_operands_to_measure_on_are_in_range() -> None:
    def gather(x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
        return (x.index_select(0, index) * scale + scale).exp()

    values = [torch.randn(5, 4), torch.tensor([0, 1]), torch.randn(4)]
    (region,) = find_regions(make_fx(gather, tracing_mode="fake")(*values))
    kernel = emit(region)
    made = trial.random_operands(region, kernel, CPU)
    assert [x.shape for x in made] == [torch.Size(s) for s in kernel.operands]
    region.graph(*made)
    with torch.no_grad():
        made[[x.is_floating_point() for x in made].index(False)].fill_(5)
    with pytest.raises((IndexError, RuntimeError)):
        region.graph(*made)


def test_rows_between_two_powers_of_two_are_one_class() -> None:
    classes = []
    for rows in (520, 1000, 1030):
        stage = make_fx(run, tracing_mode="fake")(torch.randn(rows, 9), torch.randn(rows, 9))
        (region,) = find_regions(stage)
        classes.append(trial.shape_class(emit(region), region))
    assert classes[0] == classes[1] != classes[2]


def test_the_report_shows_the_choice(wan: Program) -> None:
    model = fisopt.optimize(wan, passes=[FrameInterleave()])
    model.program(zoo()["wan"].inputs(5, 3, 4, batch=2))
    assert f"lowering: every region: reference ({choose.ON_CPU})" in str(model.report)


@pytest.mark.parametrize("place", ["/dev/null/cache", "a file"])
def test_what_cannot_be_written_is_kept_for_the_process(
    place: str, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "a file":
        (gpu / "choices").write_text("in the way")
    else:
        monkeypatch.setenv(cache.VARIABLE, place)
    monkeypatch.setattr(cache, "_said", [])
    monkeypatch.setattr(choose, "_UNKEPT", {})
    asked = timed(monkeypatch, reference=20.0, emitted=10.0)
    with pytest.warns(RuntimeWarning, match="without its disk cache") as said:
        chosen = [
            decide("r", choose.REGION, k, GPU, candidates).chosen for k in ("a", "b", "a", "b")
        ]
    assert chosen == ["emitted"] * 4
    assert len(said) == 1
    assert len(asked) == 4, "each key is measured once"
    ones = [torch.ones(2), torch.ones(2)]
    choose.decide_operator(torch.ops.aten.add.Tensor, ones, GPU, ["kernel"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"key": {"reference": "fast"}}', "[]", "\xff"])
def test_timings_that_are_none_are_measured_again(text: str, gpu: Path) -> None:
    file = gpu / "choices" / "Some_GPU_1.json"
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    with pytest.warns(RuntimeWarning, match="made again"):
        assert choose.remembered(file) == {}
