"""Calibration through a small pipeline: what is measured, what is chosen, going on, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from fisopt import InputError, Schedule, ScheduleError
from fisopt.calibration import Calibration, Target, _Recorder, _resume, calibrate
from fisopt.rewrite.ops.match_tokens import reference
from fisopt.rewrite.partition import destinations
from fisopt.runtime import captures
from tests.conftest import captured
from tests.zoo import zoo

GRID, STRIDE, STEPS = (5, 3, 4), (2, 1, 2), 3


class Pipeline:
    """Calls its transformer as diffusers' pipelines do."""

    def __init__(self) -> None:
        self.transformer = zoo()["wan"].model

    def __call__(self, index: int, steps: int = STEPS) -> None:
        for step in range(steps):
            for branch in ("cond", "uncond"):
                seed = 100 * index + 10 * step + len(branch)
                inputs = zoo()["wan"].inputs(*GRID, batch=2, seed=seed)
                with self.transformer.cache_context(
                    branch, step_index=step, num_inference_steps=steps
                ):
                    self.transformer(**inputs)


@pytest.fixture(autouse=True)
def _captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = captured("wan")
    monkeypatch.setattr(captures, "capture", lambda *_: program)


def made(target: Target, **more: Any) -> Calibration:
    options: dict[str, Any] = {"prompts": 2, "steps": STEPS, "destination_stride": STRIDE}
    return calibrate(Pipeline(), lambda pipe, i: pipe(i), target=target, **{**options, **more})


def features() -> dict[str, Tensor]:
    """What each block's self-attention is given over two prompts, from the model itself."""
    profiles = {f: torch.zeros(4, STEPS, 11) for f in ("query", "value")}
    block = -1
    real = torch.nn.functional.scaled_dot_product_attention
    step = 0

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal block
        if query.shape[-2] == key.shape[-2]:
            block += 1
            for feature, x in (("query", query), ("value", value)):
                chosen = destinations(GRID, STRIDE, 0, block, 0, feature)
                profiles[feature][block, step] += reference(x, chosen, 0, 0, 0)[2] / 4
        return real(query, key, value, *args, **kwargs)

    model = zoo()["wan"].model
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend), torch.no_grad():
        for index in range(2):
            for step in range(STEPS):
                for branch in ("cond", "uncond"):
                    block = -1
                    seed = 100 * index + 10 * step + len(branch)
                    model(**zoo()["wan"].inputs(*GRID, batch=2, seed=seed))
    return profiles


def test_measures_the_model_and_meets_a_cost(tmp_path: Path) -> None:
    seen: list[int] = []
    result = made(Target(ratio=0.6), seen=lambda: seen.append(1))
    for feature, want in features().items():
        torch.testing.assert_close(result.profiles[feature], want)  # type: ignore[index]
    assert len(seen) == 2 * STEPS
    schedule, measured = result.schedule, result.schedule.measured
    assert result.cost == schedule.attention_cost(GRID, STRIDE) <= 0.6
    assert 0 < result.error < 1
    assert (measured.model, measured.grid) == ("WanTransformer3DModel", GRID)
    assert (measured.prompts, measured.target) == (2, "cost ratio 0.6")
    schedule.save(tmp_path / "s.yaml")
    assert Schedule.load(tmp_path / "s.yaml").query == schedule.query


def test_meets_an_error() -> None:
    loose, strict = made(Target(error=0.2), prompts=1), made(Target(error=0.02), prompts=1)
    assert strict.error <= 0.02
    assert loose.error <= 0.2
    assert loose.cost < strict.cost <= 1


def test_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    whole, partial = made(Target(ratio=0.6)), tmp_path / "p.safetensors"
    ran: list[int] = []

    def cut(pipe: Pipeline, index: int) -> None:
        if index == 1:
            raise KeyboardInterrupt
        pipe(index)

    def go_on(pipe: Pipeline, index: int) -> None:
        ran.append(index)
        pipe(index)

    pipeline = Pipeline()
    model = pipeline.transformer
    options: dict[str, Any] = {"prompts": 2, "steps": STEPS, "destination_stride": STRIDE}
    options |= {"target": Target(ratio=0.6), "partial": partial}
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipeline, cut, **options)
    assert pipeline.transformer is model
    rest = calibrate(pipeline, go_on, **options)
    assert pipeline.transformer is model
    assert ran == [0, 1], "the first is run again for its calls, and not measured again"
    assert rest.schedule == whole.schedule
    for feature, profile in whole.profiles.items():
        torch.testing.assert_close(rest.profiles[feature], profile)
    with pytest.raises(ScheduleError, match=r"holds what was measured as .*remove it"):
        calibrate(pipeline, go_on, **{**options, "seed": 1})
    with pytest.raises(ScheduleError, match=r"this run is .*of other prompts.*remove it"):
        calibrate(pipeline, go_on, **options, about={"prompts": ["of other prompts"]})
    assert pipeline.transformer is model
    partial.write_bytes(partial.read_bytes()[:-5])
    with pytest.raises(ScheduleError, match="is not complete"):
        calibrate(pipeline, go_on, **options)


def test_progress_of_other_weights_is_refused(tmp_path: Path) -> None:
    """One number in one tensor is enough, in any part of the pipeline."""
    partial, pipeline = tmp_path / "p.safetensors", Pipeline()
    options: dict[str, Any] = {"prompts": 1, "steps": STEPS, "destination_stride": STRIDE}
    options |= {"target": Target(ratio=0.6), "partial": partial}
    pipeline.text_encoder = torch.nn.Linear(2, 2)  # type: ignore[attr-defined]
    calibrate(pipeline, lambda pipe, i: pipe(i), **options)
    model = pipeline.transformer
    for weight in (model.scale_shift_table, pipeline.text_encoder.bias):  # type: ignore[attr-defined]
        kept = weight.data.clone()
        weight.data.view(-1)[0] += 1e-3
        with pytest.raises(ScheduleError, match=r"measured as \{'weights': .*remove it"):
            calibrate(pipeline, lambda pipe, i: pipe(i), **options)
        weight.data.copy_(kept)


def test_progress_that_is_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    run = json.dumps({"model": "M"})
    sums = {f: torch.zeros(4, STEPS, 11) for f in ("query", "value")}
    whole = {**sums, "counts": torch.ones(STEPS)}
    recorder = _Recorder(None, STEPS, print)  # type: ignore[arg-type]

    def resume() -> int:
        return _resume(path, {"model": "M"}, recorder, 3)

    path.write_bytes(save(whole, {"run": run, "done": "2"}))
    assert resume() == 2
    infinite = {**whole, "counts": torch.full((STEPS,), float("inf"))}
    for tensors, told, message in (
        (whole, None, "is not what calibrate keeps"),
        (whole, {"format": "pt"}, "is not what calibrate keeps"),
        (whole, {"run": "[1]", "done": "2"}, "is not what calibrate keeps"),
        (whole, {"run": "[" * 9999, "done": "2"}, "is not what calibrate keeps"),
        (whole, {"run": "{}", "done": "2"}, r"measured as \{'model': None\}"),
        (whole, {"run": run}, "is damaged: got no number of prompts"),
        (whole, {"run": run, "done": "two"}, "is damaged"),
        (whole, {"run": run, "done": "0"}, "is damaged"),
        (whole, {"run": run, "done": "4"}, "holds 4 prompts, this run is of 3"),
        (sums, {"run": run, "done": "2"}, "is damaged"),
        ({"w": torch.ones(2)}, {"run": run, "done": "2"}, "is damaged"),
        ({**whole, "query": torch.zeros(4, 2, 11)}, {"run": run, "done": "2"}, "is damaged"),
        ({**whole, "query": torch.zeros(())}, {"run": run, "done": "2"}, "is damaged"),
        (infinite, {"run": run, "done": "2"}, "is damaged"),
    ):
        path.write_bytes(save(tensors, told))
        with pytest.raises(ScheduleError, match=f"p.safetensors .*{message}"):
            resume()
    for text in ("", "{}", "x" * 99):
        path.write_text(text)
        with pytest.raises(ScheduleError, match="is not complete"):
            resume()


@pytest.mark.parametrize("given", [{}, {"ratio": 0.5, "error": 0.1}, {"ratio": 1.5}, {"error": 0}])
def test_target(given: Any) -> None:
    with pytest.raises(InputError, match="a target ratio or a target error, one of the two"):
        Target(**given)


def test_refusals() -> None:
    with pytest.raises(InputError, match="got 0 prompts"):
        made(Target(ratio=0.5), prompts=0)
    with pytest.raises(InputError, match="told 2 steps, the pipeline is at Step"):
        made(Target(ratio=0.5), steps=2)
    with pytest.raises(InputError, match="told 4 steps, the pipeline did not run step 3"):
        made(Target(ratio=0.5), steps=4)
    with pytest.raises(InputError, match=r"reaches a cost ratio of 0\.\d+ at most, wanted 0.01"):
        made(Target(ratio=0.01), prompts=1)
    with pytest.raises(InputError, match="has transformer; got component='transformer_2'"):
        made(Target(ratio=0.5), component="transformer_2")


class TwoTransformers(Pipeline):
    """Gives its last step to another transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_2 = zoo()["wan"].model

    def __call__(self, index: int, steps: int = STEPS) -> None:
        for step in range(steps):
            transformer = self.transformer_2 if step == steps - 1 else self.transformer
            inputs = zoo()["wan"].inputs(*GRID, batch=2, seed=100 * index + 10 * step + 4)
            with transformer.cache_context("cond", step_index=step, num_inference_steps=steps):
                transformer(**inputs)


def test_each_of_two_transformers_has_a_schedule() -> None:
    """Steps that it does not run are like the nearest of those that it does."""
    options: dict[str, Any] = {"prompts": 1, "steps": STEPS, "destination_stride": STRIDE}
    options["target"] = Target(ratio=0.6)
    pipeline = TwoTransformers()
    with pytest.raises(InputError, match="has transformer and transformer_2; got component=None"):
        calibrate(pipeline, lambda pipe, i: pipe(i), **options)
    for name, alike in (("transformer", [0, 1, 1]), ("transformer_2", [2, 2, 2])):
        result = calibrate(pipeline, lambda pipe, i: pipe(i), component=name, **options)
        assert getattr(pipeline, name) is zoo()["wan"].model
        for profile in result.profiles.values():
            assert torch.isfinite(profile).all()
            assert torch.equal(profile, profile[:, alike])
        assert result.cost <= 0.6
