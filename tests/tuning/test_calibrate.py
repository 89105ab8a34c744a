"""Calibration through a small pipeline: what is measured, what is chosen, going on, refusals."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fisopt
from fisopt import InputError, OptionError, Schedule
from fisopt.rewrite.ops.match_tokens import match_tokens
from fisopt.rewrite.partition import destinations
from fisopt.runtime import captures
from fisopt.tuning.calibrate import Calibration, Target, _damage
from fisopt.tuning.progress import Progress
from tests.conftest import captured
from tests.zoo import zoo

pytestmark = pytest.mark.xdist_group("wan")
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


def made(prompts: int = 2, **more: Any) -> Calibration:
    return calibrated(Pipeline(), prompts, **more)


def calibrated(pipeline: Any, prompts: int, **more: Any) -> Calibration:
    """As `fisopt.calibrate`, for prompts that are numbers."""
    options: dict[str, Any] = {"steps": STEPS, "destination_stride": STRIDE, **more}
    options = {"generate": lambda pipe, i: pipe(i), **options}
    return fisopt.calibrate(pipeline, [str(i) for i in range(prompts)], **options)


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
                profiles[feature][block, step] += (
                    match_tokens.reference(x, chosen, 0, 0, 0, True)[2] / 4
                )
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
    result = made(target_ratio=0.6, search="all", seen=seen.append)
    for feature, want in features().items():
        torch.testing.assert_close(result.profiles[feature], want)  # type: ignore[index]
    assert seen == [STEPS, 2 * STEPS]
    schedule, measured = result.schedule, result.schedule.measured
    assert result.cost == schedule.attention_cost(GRID, STRIDE) <= 0.6
    assert 0 < result.error < 1
    assert (measured.model, measured.grid) == ("WanTransformer3DModel", GRID)
    assert (measured.prompts, measured.target) == (2, "cost ratio 0.6")
    schedule.save(tmp_path / "s.yaml")
    assert Schedule.load(tmp_path / "s.yaml").query == schedule.query


def test_measures_what_the_search_finds() -> None:
    """A grid of which not all cells are neighbours: nothing nearby is nearer than the nearest."""
    near, everywhere = (
        made(1, target_ratio=0.8, destination_stride=(2, 1, 1), search=search).profiles
        for search in ("near", "all")
    )
    for feature in near:
        assert bool((near[feature] >= everywhere[feature] - 1e-6).all())
        assert float((near[feature] - everywhere[feature]).max()) > 1e-3
    with pytest.raises(OptionError, match=r"search must be one of \['all', 'near'\], got 'far'"):
        made(1, target_ratio=0.8, search="far")


def test_meets_an_error() -> None:
    loose = made(1, target_error=0.2)
    assert 0.02 < loose.error <= 0.2
    assert loose.cost < 1


@pytest.mark.slow
def test_a_smaller_error_costs_more() -> None:
    loose, strict = made(1, target_error=0.2), made(1, target_error=0.02)
    assert strict.error <= 0.02
    assert loose.cost < strict.cost <= 1


def test_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    whole, kept = made(target_ratio=0.6), tmp_path / "p.json"
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
    options: dict[str, Any] = {"target_ratio": 0.6, "progress": kept}
    with pytest.raises(KeyboardInterrupt):
        calibrated(pipeline, 2, generate=cut, **options)
    assert pipeline.transformer is model
    rest = calibrated(pipeline, 2, generate=go_on, **options)
    assert pipeline.transformer is model
    assert ran == [0, 1], "the first is run again for its calls, and not measured again"
    assert rest.schedule == whole.schedule
    for feature, profile in whole.profiles.items():
        torch.testing.assert_close(rest.profiles[feature], profile)
    with pytest.raises(InputError, match=r"was measured with other seed: .*remove it"):
        calibrated(pipeline, 2, generate=go_on, **options, seed=1)
    with pytest.raises(InputError, match=r"with other prompts: .*this run is .*remove it"):
        calibrated(pipeline, 3, generate=go_on, **options)
    assert pipeline.transformer is model
    kept.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(InputError, match="is not complete"):
        calibrated(pipeline, 2, generate=go_on, **options)


def test_progress_of_other_weights_is_refused(tmp_path: Path) -> None:
    """One number in one tensor is enough, in any part of the pipeline."""
    pipeline = Pipeline()
    options: dict[str, Any] = {"target_ratio": 0.6, "progress": tmp_path / "p.json"}
    pipeline.text_encoder = torch.nn.Linear(2, 2)  # type: ignore[attr-defined]
    calibrated(pipeline, 1, **options)
    model = pipeline.transformer
    for weight in (model.scale_shift_table, pipeline.text_encoder.bias):  # type: ignore[attr-defined]
        kept = weight.data.clone()
        weight.data.view(-1)[0] += 1e-3
        with pytest.raises(InputError, match=r"with other weights: .*remove it"):
            calibrated(pipeline, 1, **options)
        weight.data.copy_(kept)


def test_progress_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path, about = tmp_path / "p.json", {"prompts": ["a", "b"]}
    damage = partial(_damage, STEPS)
    sums = {f: torch.zeros(4, STEPS, 11).tolist() for f in ("query", "value")}
    whole = {**sums, "counts": [1.0] * STEPS}
    for state in (
        {},
        {**whole, "counts": [float("inf")] * STEPS},
        {**whole, "counts": [1.0] * (STEPS - 1)},
        sums,
        {"w": [1.0, 1.0]},
        {**whole, "query": torch.zeros(4, 2, 11).tolist()},
        {**whole, "query": 0.0},
        {**whole, "query": "x"},
    ):
        held = {"about": about, "model": state, "prompts": {"0": None}}
        path.write_text(json.dumps(held))
        with pytest.raises(InputError, match=r"p\.json is (damaged|not complete)"):
            Progress(path, about, damage)
    path.write_text(json.dumps({"about": about, "model": whole, "prompts": {}}))
    with pytest.raises(InputError, match="of 0 prompts"):
        Progress(path, about, damage)
    path.write_text(json.dumps({"about": about, "model": whole, "prompts": {"0": None}}))
    assert 0 in Progress(path, about, damage)


@pytest.mark.parametrize("given", [{}, {"ratio": 0.5, "error": 0.1}, {"ratio": 1.5}, {"error": 0}])
def test_target(given: Any) -> None:
    with pytest.raises(InputError, match=r"a target ratio .--keep. or a target error"):
        Target(**given)


def test_refusals() -> None:
    with pytest.raises(InputError, match="got 0 prompts"):
        made(0, target_ratio=0.5)
    with pytest.raises(InputError, match="got steps=2, but the pipeline is at Step"):
        made(target_ratio=0.5, steps=2)
    with pytest.raises(InputError, match="got steps=4, but the pipeline did not run step 3"):
        made(target_ratio=0.5, steps=4)
    with pytest.raises(InputError, match=r"reaches a cost ratio of 0\.\d+ at most, wanted 0.01"):
        made(1, target_ratio=0.01)
    with pytest.raises(InputError, match="has transformer; got component='transformer_2'"):
        made(target_ratio=0.5, component="transformer_2")


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
    pipeline = TwoTransformers()
    with pytest.raises(InputError, match="has transformer and transformer_2; got component=None"):
        calibrated(pipeline, 1, target_ratio=0.6)
    for name, alike in (("transformer", [0, 1, 1]), ("transformer_2", [2, 2, 2])):
        result = calibrated(pipeline, 1, component=name, target_ratio=0.6)
        assert getattr(pipeline, name) is zoo()["wan"].model
        for profile in result.profiles.values():
            assert torch.isfinite(profile).all()
            assert torch.equal(profile, profile[:, alike])
        assert result.cost <= 0.6


def test_a_pipeline_that_does_not_call_its_transformer() -> None:
    with pytest.raises(InputError, match="did not call its transformer"):
        made(1, target_ratio=0.6, generate=lambda pipe, i: None)
