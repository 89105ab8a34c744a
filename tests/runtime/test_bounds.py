"""What is held is bounded, and what is dropped in use by another thread still runs."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from torch.fx import graph_module

from fisopt.lru import Lru
from fisopt.runtime.report import Report
from tests.runtime.pairs import Pair, video


def test_the_least_recently_used_makes_room() -> None:
    dropped: list[int] = []
    held: Lru[str, int] = Lru(2, dropped.append)
    held.update({"a": 1, "b": 2})
    assert held["a"] == 1
    held["c"] = 3
    assert dict(held) == {"a": 1, "c": 3}
    held.size = 1
    assert dropped == [2, 1]


def test_many_shapes_are_held_up_to_a_size() -> None:
    pair = Pair(cache_size=3)
    fast, model = pair.fast, pair.model
    for batch in range(2, 14):
        inputs = video(batch=batch)
        torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=0, atol=1e-6)
    assert len(fast._plans) == len(fast.report.variants) == 3
    assert len(fast.captures) <= 3
    assert fast.report.dropped == 9
    assert "9 variants evicted" in str(fast.report)
    fast.clear()
    assert len(fast._plans) == len(fast.report.variants) == len(fast.captures) == 0
    pair.check(changed=False)


def test_changes_are_a_bounded_list_with_the_newest_last() -> None:
    report = Report("Small", "eager")
    for i in range(150):
        report.recaptured(f"change {i}")
    report.recaptured("change 120")
    assert len(report.changes) == 100
    assert report.changes[-1] == "recaptured: change 120"
    assert report.changes[:2] == ["recaptured: change 50", "recaptured: change 51"]
    assert "change 120 (2 times)" in str(report)


def test_texts_of_graphs_are_not_kept() -> None:
    """torch.fx keeps one for each graph that is ever made."""
    texts, before = graph_module._loader.eval_cache, set(graph_module._loader.eval_cache)
    pair = Pair(cache_size=3)
    for batch in range(2, 5):
        pair.fast(**video(batch=batch))
    assert set(texts) <= before
    program = pair.fast.program(video(batch=4))
    assert "def forward" in program.graph_module.code


def test_compiled_graphs_go_with_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend="eager"))
    pair = Pair(cache_size=2, backend="inductor")
    for batch in (1, 2, 3, 4):
        pair.fast(**video(batch=batch))
    gc.collect()
    held = pair.fast._plans.stages
    pair.fast(**video(batch=5))
    gc.collect()
    assert pair.fast._plans.stages == held > 0
    pair.fast.clear()
    gc.collect()
    assert pair.fast._plans.stages == 0


def strided(frames: int) -> list[torch.Tensor]:
    """One video of two frames, cut in many ways from longer and wider ones."""
    x = video()["video"]
    longer = torch.zeros(1, 4 + frames, 8)
    longer[:, :4] = x
    wider = torch.zeros(1, 4, 8 + frames)
    wider[..., :8] = x
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    batches = torch.zeros(1 + frames, 4, 8)
    batches[0] = x
    return [longer[:, :4], wider[..., :8], turned, batches[:1], batches[::frames][:1]]


def test_strides_are_no_reason_to_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **more: real(model, **{**more, "backend": "eager"})
    )
    pair = Pair(backend="inductor")
    pair.fast(**pair.inputs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in (1, 2, 3):
            for x in strided(frames):
                torch.testing.assert_close(pair.fast(x), pair.before, rtol=0, atol=1e-6)
        with torch.no_grad():
            pair.fast(pair.inputs["video"].clone().requires_grad_())


def test_threads_drop_what_others_use() -> None:
    pair = Pair(cache_size=1)
    calls = [video(batch=batch) for batch in (1, 2)]
    wanted = [pair.model(**call) for call in calls]
    failed: list[Any] = []

    def run(first: int) -> None:
        try:
            for i in range(4):
                which = (first + i) % 2
                got = pair.fast(**calls[which])
                torch.testing.assert_close(got, wanted[which], rtol=0, atol=1e-6)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(pair.fast._plans) == 1
