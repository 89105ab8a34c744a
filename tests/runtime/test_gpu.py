"""On a GPU: pipelines are equal to those on the processor, with whatever else is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fisopt
from fisopt import FrameInterleave, StepCache, TileAttention
from tests.runtime import pipes
from tests.runtime.pipes import CLOSE, SPEC, Both, clip, load, looped, pipeline, strengths
from tests.runtime.pipes import transformer as on_host
from tests.runtime.test_torchao import quantise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = "cuda"
FRAMES = 9
PASSES: dict[str, list[Any]] = {
    "dense": [],
    "frames": [FrameInterleave(stride=2, blocks=":")],
    "tiles": [TileAttention(mask=1, blocks=":")],
    "frames and tiles": [FrameInterleave(stride=2, blocks="1:"), TileAttention(mask=1)],
    "step cache": [StepCache(0.5)],
    "fixed step cache": [StepCache(steps="1")],
}


def transformer(depth: int = 3) -> Any:
    return on_host(depth).to(DEVICE)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
def test_as_on_the_processor(passes: list[Any], backend: str) -> None:
    """Two clips, the second with what the first compiled."""
    clips = {}
    for device, how in (("cpu", "eager"), (DEVICE, backend)):
        pipe = fisopt.optimize(pipeline(transformer().to(device)), passes, spec=SPEC, backend=how)
        clips[device] = [clip(pipe, FRAMES).cpu() for _ in range(2)]
        assert not pipe.transformer.report.notes
    assert torch.equal(*clips[DEVICE])
    torch.testing.assert_close(clips[DEVICE][0], clips["cpu"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_adapters(backend: str) -> None:
    both = Both(load(0, "a", depth=3), models=[transformer()], backend=backend)
    clips = [both.check()]
    for change in (strengths(0.25), load(1, "b", depth=3), strengths(0.5, 0.5)):
        both.do(change)
        clips.append(both.check())
    assert len({float(x.sum()) for x in clips}) == len(clips)


@pytest.mark.parametrize("form", ["int8", "float8", "int8 rows", "float8 rows", "float8 tensor"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_quantised_weights(form: str, backend: str) -> None:
    models, sparse = [transformer(1).bfloat16()], [FrameInterleave(stride=2, blocks=":")]
    both = Both(quantise(form), models=models, passes=sparse, backend=backend)
    want = looped(both.plain, 2, FRAMES)
    torch.testing.assert_close(clip(both.fast, FRAMES), want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("attention", ["cudnn", "flash", "sdpa"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_chosen_attention(attention: str, backend: str) -> None:
    models = [transformer().bfloat16()]
    both = Both(models=models, attention=attention, backend=backend)
    want, got = (clip(pipe, FRAMES) for pipe in (both.plain, both.fast))
    torch.testing.assert_close(got, want, rtol=0, atol=CLOSE)
    report = both.fast.transformer.report
    assert not report.notes
    assert not [c for v in report.variants for c in v.choices if "not" in str(c)], str(report)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_fp8_linears(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As simulated, but for single numbers that fall to the other side when they are rounded."""
    monkeypatch.setattr(pipes, "WIDTH", 512)  # smaller ones gain nothing and are left alone
    models = [transformer().bfloat16()]
    got, simulated, plain = (
        clip(Both(models=models, linear=linear, backend=backend).fast, FRAMES)
        for linear in ("fp8", "fp8-simulated", "model")
    )
    assert (got - simulated).norm() < 0.5 * (plain - simulated).norm()


def test_fp8_linears_leave_with_an_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "WIDTH", 512)
    pipe = Both(models=[transformer().bfloat16()], linear="fp8", backend="eager").fast
    want = clip(pipe, FRAMES)
    path = fisopt.export(pipe.transformer, tmp_path / "fast.pt2", dynamic=False)
    loaded = fisopt.load(path)
    assert any(x.dtype == torch.float8_e4m3fn for x in loaded.state_dict().values())
    pipe.transformer = loaded
    torch.testing.assert_close(clip(pipe, FRAMES), want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_weights_on_the_host(prefetch: int) -> None:
    """A pipeline that is moved keeps the weights of its transformer where they were."""
    both = Both(models=[on_host(3)], offload="block", prefetch=prefetch, backend="inductor")
    both.plain.to(DEVICE)
    both.fast.to(DEVICE)
    want, *got = (clip(pipe, FRAMES) for pipe in (both.plain, both.fast, both.fast, both.fast))
    for latents in got:
        torch.testing.assert_close(latents, want, rtol=1e-4, atol=1e-4)
    module = both.fast.transformer
    assert {p.device.type for p in module.original.parameters()} == {"cpu"}
    held = module.report.weights
    assert 0 < held.peak < held.total
    assert held.copied >= 3 * held.total


def test_the_summary_times_steps_by_events() -> None:
    both = Both(models=[transformer()], passes=PASSES["frames"])
    for _ in range(2):
        clip(both.fast, FRAMES)
    found = fisopt.summary(both.fast)
    assert len(found.steps) == 2
    assert all(step.measured_ms and step.predicted_ms for step in found.steps)
    assert all(call.began.event is not None for call in both.fast.transformer.calls)
    assert str(found)
