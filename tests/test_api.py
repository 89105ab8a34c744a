"""The optimised module in the original's place."""

from __future__ import annotations

import pytest
import torch

import fisopt
from fisopt import FrameInterleave, OptimizedModule, PassManager, Program
from fisopt.runtime import captures
from tests import plain_dit
from tests.conftest import plain_captured
from tests.zoo import zoo

pytestmark = pytest.mark.usefixtures("captured_once")


@pytest.fixture
def model(wan: Program) -> OptimizedModule:
    result: OptimizedModule = fisopt.optimize(wan, passes=[FrameInterleave()], backend="eager")
    return result


def test_takes_the_original_s_place(model: OptimizedModule) -> None:
    original = zoo()["wan"].model
    assert model.original is original
    assert isinstance(model, torch.nn.Module)
    assert model.config is original.config
    assert (model.dtype, model.device) == (original.dtype, original.device)
    assert model.to("cpu") is model
    assert not model.training
    theirs = dict(original.named_parameters())
    mine = dict(model.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in theirs)
    assert model.state_dict().keys() == original.state_dict().keys()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing
    assert "FrameInterleave(" in repr(model)
    assert "stride=2" in repr(model)


def test_positional_arguments(model: OptimizedModule) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    named = model(**inputs)[0]
    video, time = inputs.pop("hidden_states"), inputs.pop("timestep")
    torch.testing.assert_close(model(video, time, **inputs)[0], named)


def test_gradients_are_off(model: OptimizedModule) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    assert not model(**inputs)[0].requires_grad


def test_report(model: OptimizedModule) -> None:
    assert "nothing captured yet" in str(model.report)
    for frames in (5, 6, 5):
        model(**zoo()["wan"].inputs(frames, 3, 4, batch=2))
    assert [str(v.layout) for v in model.report.variants] == ["5x3x4", "6x3x4"]
    text = str(model.report)
    assert "FrameInterleave: 3 of 4 blocks sparse on 3 or 4 of 5 latent frames" in text
    assert f"predicted {1 / model.report.variants[0].density:.2f}x" in text
    assert "density" in text
    assert "sparsity" in text
    assert all(0 < v.density < 1 for v in model.report.variants)


def test_new_weights_are_seen(model: OptimizedModule) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    before = model(**inputs)[0]
    weight = model.original.proj_out.weight
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight.mul_(2)
        assert not torch.allclose(model(**inputs)[0], before)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    torch.testing.assert_close(model(**inputs)[0], before, rtol=0, atol=0)


def test_optimising_again_starts_from_the_original(model: OptimizedModule) -> None:
    again = fisopt.optimize(model, passes=[], backend="eager")
    assert again.original is model.original


def test_every_stage_of_a_preset_runs(model: OptimizedModule) -> None:
    for name, (title, passes) in fisopt.PRESETS.items():
        assert name == name.lower()
        assert title
        assert passes


def test_every_name_is_there_and_no_other() -> None:
    assert set(fisopt.__all__) < set(dir(fisopt))
    assert all(getattr(fisopt, name) is not None for name in fisopt.__all__)
    with pytest.raises(AttributeError, match="module 'fisopt' has no attribute 'optimise'"):
        fisopt.optimise  # type: ignore[attr-defined]  # noqa: B018


@pytest.fixture
def no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever captures a model fails."""
    monkeypatch.setattr(captures, "capture", None)


@pytest.mark.usefixtures("no_capture")
def test_a_program_is_optimised_without_another_capture() -> None:
    form = plain_dit.FORMS["fused"]
    dense, program = plain_captured(form)
    inputs = plain_dit.inputs(form, 5, 2, 3, batch=2)
    fast = fisopt.optimize(program, [FrameInterleave(stride=3)], inputs, backend="eager")
    assert fast.original is dense
    want = PassManager([FrameInterleave(stride=3)]).run(program)(**inputs)["video"]
    assert torch.equal(fast(**inputs)["video"], want)
    longer = plain_dit.inputs(form, 7, 2, 3, batch=2)
    dense_again = fisopt.optimize(program, [], backend="eager")
    torch.testing.assert_close(dense_again(**longer)["video"], dense(**longer)["video"])


def test_a_program_of_a_model_that_has_changed_is_captured_anew() -> None:
    form = plain_dit.FORMS["fused"]
    dense, inputs = plain_dit.build(form), plain_dit.inputs(form, 5, 2, 3)
    spec = fisopt.ModelSpec(("layers.*",), grid=(5, 2, 3))
    program = fisopt.capture(dense, inputs, spec)
    dense.layers[1].mlp[1] = torch.nn.ReLU()
    fast = fisopt.optimize(program, [], inputs, backend="eager")
    torch.testing.assert_close(fast(**inputs)["video"], dense(**inputs)["video"])


@pytest.mark.usefixtures("no_capture")
def test_a_program_that_cannot_be_optimised() -> None:
    _, program = plain_captured(plain_dit.FORMS["fused"])
    with pytest.raises(
        fisopt.OptionError, match=r"got a Program that passes have edited; .* as passes="
    ):
        fisopt.optimize(FrameInterleave()(program).program, [])
    other = fisopt.ModelSpec(("layers.*",), grid=(3, 2, 3))
    with pytest.raises(fisopt.OptionError, match=r"captured with ModelSpec\(.*; leave out spec"):
        fisopt.optimize(program, [], spec=other)
