"""Configs of diffusers' step caches on an optimised module: what they become, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor

import fisopt
from fisopt import InputError, OptimizedModule, OptionError, OptionTypeError, StepCache
from fisopt.runtime.diffusers_caches import translated
from tests.conftest import captured
from tests.passes.step_loop import optimized, run, wanted
from tests.plain_dit import FORMS
from tests.runtime.test_pipelines import wan
from tests.zoo import zoo

FORM = FORMS["fused"]
RATIOS = [1.0, 1.01, 0.98, 1.02, 0.97, 1.03, 1.01, 0.99]


def test_first_block_cache() -> None:
    fast = optimized(FORM, [])
    assert not fast.is_cache_enabled
    fast.enable_cache(FirstBlockCacheConfig(threshold=0.15))
    assert fast.passes == (StepCache(0.15),)
    assert fast.is_cache_enabled
    for got, want in zip(run(fast, FORM), wanted(FORM, threshold=0.15)[0], strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(InputError, match=r"has a step cache.*disable_cache\(\) first"):
        fast.enable_cache(FirstBlockCacheConfig())
    fast.disable_cache()
    assert fast.passes == ()
    for got, want in zip(run(fast, FORM), wanted(FORM, reuses=())[0], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("captured_once")
def test_through_a_pipeline() -> None:
    """Two clips of the optimised pipeline are those of diffusers' cache on the plain one."""
    pipe, run_pipe, _ = wan()
    pipe.set_progress_bar_config(disable=True)
    config = FirstBlockCacheConfig(threshold=0.08)

    def clips() -> list[Tensor]:
        found = []
        for seed in range(2):
            torch.manual_seed(seed)
            found.append(run_pipe(6))
        return found

    pipe.transformer.enable_cache(config)
    try:
        want = clips()
    finally:
        pipe.transformer.disable_cache()
    fisopt.optimize(pipe, [], backend="eager")
    pipe.transformer.enable_cache(config)
    for got, expected in zip(clips(), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert len(pipe.transformer.report.decisions) == 2, "some calls reuse and some compute"
    pipe.transformer.disable_cache()
    torch.manual_seed(0)
    assert not torch.equal(run_pipe(6), want[0])


def generation(model: Any) -> Iterator[Tensor]:
    for step in range(len(RATIOS)):
        inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
        generator = torch.Generator().manual_seed(step)
        inputs["hidden_states"] += 0.1 * torch.randn(
            inputs["hidden_states"].shape, generator=generator
        )
        said = {"step_index": step, "num_inference_steps": len(RATIOS)}
        with model.cache_context("cond", **said), torch.no_grad():
            yield model(**inputs)[0]


def test_mag_cache() -> None:
    """The steps that its table of ratios skips are those that diffusers skips."""
    sizes = {"num_inference_steps": len(RATIOS), "retention_ratio": 0.25}
    config = MagCacheConfig(threshold=0.06, max_skip_steps=2, mag_ratios=RATIOS, **sizes)
    model: Any = zoo()["wan"].model
    model.enable_cache(config)
    try:
        want = list(generation(model))
    finally:
        model.disable_cache()
    fast = fisopt.optimize(captured("wan"), [], backend="eager")
    fast.enable_cache(config)
    assert fast.passes == (StepCache(blocks=":", steps="2,3,5,7"),)
    for got, expected in zip(generation(fast), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_taylor_seer() -> None:
    """It computes at the steps of diffusers' rule."""
    config = TaylorSeerCacheConfig(cache_interval=4, disable_cache_before_step=2)
    cache, note = translated(config)
    assert (cache.order, cache.blocks) == (1, ":")
    assert "not layer by layer" in note
    names = [type(cache.at(fisopt.Step(i, 20))).__name__ for i in range(12)]
    computed = [name == "Computed" for name in names]
    assert computed == [i < 2 or (i - 2 - 1) % 4 == 0 for i in range(12)]
    late = translated(TaylorSeerCacheConfig(4, 2, disable_cache_after_step=6, max_order=0))[0]
    assert [type(late.at(fisopt.Step(i, 20))).__name__ for i in range(6, 9)] == 3 * ["Computed"]
    fast = optimized(FORM, [])
    fast.enable_cache(config)
    assert fast.report.notes[note] == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (FasterCacheConfig(), "FasterCacheConfig cannot become a StepCache"),
        (PyramidAttentionBroadcastConfig(), "PyramidAttentionBroadcastConfig cannot become"),
        (TaylorSeerCacheConfig(max_order=2), r"max_order=2\) cannot.*a straight line"),
        (TaylorSeerCacheConfig(cache_identifiers=["x"]), r"cache_identifiers=.*names layers"),
        (TaylorSeerCacheConfig(cache_interval=1), "every step is computed"),
        (MagCacheConfig(calibrate=True), "calibrate=True.*caches nothing"),
        (MagCacheConfig(0.0, mag_ratios=[1.5] * 28), "every step is computed"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)
def test_what_cannot_be_translated(config: Any, said: str) -> None:
    fast: OptimizedModule = optimized(FORM, [])
    with pytest.raises(InputError, match=said):
        fast.enable_cache(config)
    assert fast.passes == ()


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold="x"),
        FirstBlockCacheConfig(threshold=None),
        MagCacheConfig(threshold="x", mag_ratios=[1.0] * 28),
        TaylorSeerCacheConfig(cache_interval="x"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_wrong_values(config: Any) -> None:
    with pytest.raises(OptionError, match=rf"enable_cache: {type(config).__name__}.* wrong value"):
        translated(config)
    with pytest.raises(OptionError, match="threshold is a share of change"):
        translated(FirstBlockCacheConfig(threshold=-0.1))


def test_no_config() -> None:
    with pytest.raises(OptionTypeError, match="wanted a config of diffusers"):
        optimized(FORM, []).enable_cache(0.1)
