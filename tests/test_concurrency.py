"""Threads: tracing happens alone, graphs run beside each other, nothing waits for ever."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fisopt
from fisopt.concurrency import GATE, Gate
from fisopt.rewrite.tracing.trace import as_exported

SPEC = fisopt.ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1], 1, 1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = video + layer(video)
        return video


def test_a_compiled_graph_runs_while_another_thread_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing, go_on = Event(), Event()

    def held_up(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def waits(*values: Tensor) -> Any:
            tracing.set()
            go_on.wait(0.5)
            return run(*values)

        return make_fx(waits, **options)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("fisopt.codegen.inline.make_fx", held_up)
    models = [Model().eval().requires_grad_(False) for _ in range(2)]
    sparse = [fisopt.FrameInterleave(blocks=":")]
    fast, other = (
        fisopt.optimize(m, p, spec=SPEC) for m, p in zip(models, ([], sparse), strict=True)
    )
    video = torch.randn(1, 5, 4)
    fast(video)
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(other, video)
        assert tracing.wait(60)
        torch.testing.assert_close(fast(video), models[0](video), rtol=0, atol=1e-6)
        go_on.set()
        assert made.result().shape == video.shape


def test_tracing_happens_alone() -> None:
    gate, seen = Gate(), []

    def work(kind: str) -> None:
        for _ in range(50):
            with getattr(gate, kind)():
                seen.append(kind)
                before = list(seen)
                with gate.running():
                    Event().wait(1e-4)
                if kind == "tracing":
                    assert seen == before
                seen.append(kind)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, ["tracing", "running", "tracing", "running"]))
    pairs = [seen[i : i + 2] for i, kind in enumerate(seen[:-1]) if kind == "tracing"]
    assert sum(pair == ["tracing", "tracing"] for pair in pairs) >= 100


def test_graphs_run_beside_each_other() -> None:
    gate, together = Gate(), Barrier(3)

    def work(_: int) -> None:
        with gate.running(), gate.running():
            together.wait(60)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))


def test_threads_that_run_may_both_come_to_trace() -> None:
    gate, together, order = Gate(), Barrier(2), []

    def work(name: int) -> None:
        with gate.running():
            together.wait(60)
            with gate.tracing(), gate.tracing():
                order.extend([name, name])
            with gate.running():
                pass

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    assert order in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_an_error_inside_opens_the_gate() -> None:
    gate = Gate()
    for kind in (gate.tracing, gate.running):
        with pytest.raises(ZeroDivisionError), kind():
            raise ZeroDivisionError
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: gate.tracing().__enter__()).result(60) is None


def test_who_waits_to_trace_goes_before_those_who_come_to_run() -> None:
    gate, running, order = Gate(), Event(), []

    def trace() -> None:
        with gate.tracing():
            order.append("tracing")

    def run() -> None:
        with gate.running():
            order.append("running")

    with ThreadPoolExecutor(2) as threads:
        with gate.running():
            first = threads.submit(trace)
            while not gate._waiting:
                running.wait(1e-3)
            later = threads.submit(run)
            running.wait(0.02)
            assert not order
        first.result(60), later.result(60)
    assert order == ["tracing", "running"]


def test_a_flag_that_another_thread_has_set_is_waited_for() -> None:
    """Torch says of all threads that they export while one captures."""
    inputs, tracing = {"video": torch.randn(1, 3, 4)}, Event()
    model = Model().eval().requires_grad_(False)
    fast = fisopt.optimize(model, [], inputs, spec=SPEC, backend="eager")

    def traces() -> None:
        with GATE.tracing(), as_exported():
            tracing.set()
            Event().wait(0.3)

    with ThreadPoolExecutor() as pool:
        held = pool.submit(traces)
        tracing.wait()
        assert torch.equal(fast(**inputs), model(**inputs))
        held.result()
