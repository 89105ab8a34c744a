"""A loaded artefact in the place of the optimised module: steps, branches, state, signature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import (
    FrameInterleave,
    InputError,
    OptimizedModule,
    ScheduleError,
    StepCache,
    TokenReduction,
)
from fisopt.artefact.manifest import Format
from tests import plain_dit
from tests.artefact.models import GRID, plain
from tests.conftest import captured
from tests.plain_dit import FORMS
from tests.zoo import zoo

STEPS = 5


def compared(made: OptimizedModule, loaded: fisopt.LoadedModule, steps: int = STEPS) -> list[float]:
    """Largest difference at every step of two branches of two generations."""
    result = []
    for seed in (0, 1):
        for step in range(steps):
            for branch in ("cond", "uncond"):
                inputs = plain_dit.inputs(FORMS["text_in_front"], *GRID, batch=2)
                generator = torch.Generator().manual_seed(100 * seed + 10 * step + len(branch))
                inputs["video"] = torch.randn(inputs["video"].shape, generator=generator)
                said = {"step_index": step, "num_inference_steps": steps}
                with made.cache_context(branch, **said), loaded.cache_context(branch, **said):
                    want: Tensor = made(**inputs)["video"]
                    result.append(float((loaded(**inputs)["video"] - want).abs().max()))
    return result


def test_a_cached_match_is_carried_by_branch(tmp_path: Path) -> None:
    made, _ = plain([TokenReduction(0.6, 0.4, cache_steps=3)])
    loaded = fisopt.load(fisopt.export(made, tmp_path / "tokens", steps=STEPS, dynamic=False))
    manifest = loaded.manifest
    assert manifest.schedule == (0, 1, 1, 2, 1), "a window of its own draws its destinations"
    assert [v.afresh for v in manifest.variants] == [0, 0, 2]
    assert manifest.variants[1].loads == manifest.variants[0].stores != ()
    assert manifest.variants[2].stores == manifest.variants[0].stores
    assert manifest.seeds == {"TokenReduction": 0}
    assert max(compared(made, loaded)) <= 1e-5


def test_a_step_cache_is_carried_by_branch(tmp_path: Path) -> None:
    made, _ = plain([FrameInterleave(), StepCache(order=1, steps="2,4")])
    loaded = fisopt.load(fisopt.export(made, tmp_path / "cache", steps=STEPS, dynamic=False))
    assert loaded.manifest.schedule == (0, 1, 2, 1, 2)
    assert [v.afresh for v in loaded.manifest.variants] == [0, 0, 0]
    assert {*loaded.manifest.variants[2].loads} == {*loaded.manifest.variants[0].stores}
    assert max(compared(made, loaded)) <= 1e-5


def test_a_schedule_of_variants(tmp_path: Path) -> None:
    made, inputs = plain([FrameInterleave(steps="1:-1")])
    path = fisopt.export(made, tmp_path / "ends", steps=STEPS, dynamic=False)
    assert sorted(p.name for p in path.iterdir()) == [
        *("manifest.json", "recipe.yaml", "variant_0.pt2", "variant_1.pt2")
    ]
    loaded = fisopt.load(path)
    assert loaded.manifest.schedule == (0, 1, 1, 1, 0)
    assert [v.passes for v in loaded.manifest.variants] == [(), ("FrameInterleave",)]
    assert max(compared(made, loaded)) <= 1e-5
    for said in (
        {"step_index": 5},
        {"step_index": -1},
        {"step_index": 2, "num_inference_steps": 9},
    ):
        with (
            loaded.cache_context("cond", **said),
            pytest.raises(ScheduleError, match="not in the schedule of 5 steps"),
        ):
            loaded(**inputs)
    assert asked_in(Pipe(loaded, "its own")) == "its own"
    (path / "variant_1.pt2").unlink()
    with pytest.raises(fisopt.ExportError, match=r"variant_1.pt2 is missing"):
        fisopt.load(path)


class Pipe:
    """Holds a loaded module beside a scheduler."""

    def __init__(self, transformer: fisopt.LoadedModule, scheduler: str) -> None:
        self.transformer, self.scheduler = transformer, scheduler


def asked_in(pipe: Pipe) -> str:
    """The scheduler that tells the step of a call in a pipeline's function."""
    told: str = pipe.transformer._generation._scheduler()
    return told


@pytest.mark.xdist_group("wan")
def test_takes_the_original_s_place(tmp_path: Path) -> None:
    case, program = zoo()["wan"], captured("wan")
    inputs = case.inputs(5, 3, 4, batch=2)
    made = fisopt.optimize(program, [FrameInterleave()], inputs, backend="eager")
    loaded = fisopt.load(fisopt.export(made, tmp_path / "wan.pt2", dynamic=False))
    want = made(**inputs)
    assert torch.equal(loaded(**inputs)[0], want[0])
    positional = {**inputs}
    video, time = positional.pop("hidden_states"), positional.pop("timestep")
    assert torch.equal(loaded(video, time, **positional, attention_kwargs=None)[0], want[0])
    assert loaded.config.num_layers == case.model.config.num_layers
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert not loaded(**inputs)[0].requires_grad
    assert loaded.recipe.passes == (FrameInterleave(),)
    assert "WanTransformer3DModel" in repr(loaded)
    with pytest.raises(InputError, match=r"frames is fixed: .* export it for this shape"):
        loaded(**case.inputs(6, 3, 4, batch=2))
    with pytest.raises(InputError, match=r"got return_dict=True; it was exported for False"):
        loaded(**{**inputs, "return_dict": True})
    with pytest.raises(InputError, match="cannot be trained"):
        loaded.train()
    with pytest.raises(InputError, match="it was exported for"):
        loaded(**inputs, attention_kwargs={"scale": 1.0})


def test_kept_frames_fix_their_number(tmp_path: Path) -> None:
    made, _ = plain([FrameInterleave()])
    manifest = fisopt.load(fisopt.export(made, tmp_path / "sparse.pt2")).manifest
    assert manifest.open_sizes == ()
    assert "depends on it" in manifest.fixed_sizes["frames"]


@pytest.mark.slow
@pytest.mark.xdist_group("wan")
def test_rows_and_columns_stay_open_beside_kept_frames(tmp_path: Path) -> None:
    case, program = zoo()["wan"], captured("wan")
    made = fisopt.optimize(
        program, [FrameInterleave()], case.inputs(5, 3, 4, batch=2), backend="eager"
    )
    loaded = fisopt.load(fisopt.export(made, tmp_path / "wan.pt2"))
    assert loaded.manifest.open_sizes == ("height", "width")
    assert "depends on it" in loaded.manifest.fixed_sizes["frames"]
    other = case.inputs(5, 4, 6, batch=2)
    torch.testing.assert_close(loaded(**other)[0], made(**other)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("form", "tolerance"), [("pt2", 1e-5), ("onnx", 1e-4)])
def test_frames_stay_open_without_passes_over_frames(
    form: Format, tolerance: float, tmp_path: Path
) -> None:
    made, inputs = plain([])
    loaded = fisopt.load(fisopt.export(made, tmp_path / f"dense.{form}", form))
    assert loaded.manifest.open_sizes == ("frames",)
    assert loaded.manifest.call.tensors[0].shape == (2, "6*frames", 6)
    assert loaded.manifest.call.results[0].shape == (2, "6*frames", 6)
    for frames in (5, 8):
        other = plain_dit.inputs(FORMS["text_in_front"], frames, 2, 3, batch=2)
        want = made.original(**other)["video"]
        torch.testing.assert_close(loaded(**other)["video"], want, rtol=0, atol=tolerance)
    ragged = {**inputs, "video": inputs["video"][:, :-1]}
    with pytest.raises(InputError, match=r"wanted \[2, 6\*frames, 6\]"):
        loaded(**ragged)
