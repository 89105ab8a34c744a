"""Quanto: weights, and activations with calibrated scales, in sparse blocks too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fisopt import FrameInterleave
from fisopt.rewrite.cost import program_cost
from tests.runtime.pipes import Both, Change, clip, load, looped, strengths

quanto = pytest.importorskip("optimum.quanto")


def quantise(weights: str, activations: str | None = None) -> Change:
    """What a user does: quantise, calibrate where activations are rounded too, freeze."""

    def change(pipe: Any) -> None:
        rounded = None if activations is None else getattr(quanto, activations)
        quanto.quantize(
            pipe.transformer.blocks, weights=getattr(quanto, weights), activations=rounded
        )
        if rounded is not None:
            with quanto.Calibration():
                clip(pipe, 5)
        quanto.freeze(pipe.transformer)

    return change


@pytest.mark.parametrize(
    ("weights", "activations", "kv"),
    [
        ("qint8", None, "anchors"),
        ("qint8", "qint8", "all"),
        pytest.param("qint4", None, "anchors", marks=pytest.mark.slow),
        pytest.param("qfloat8", "qfloat8", "all", marks=pytest.mark.slow),
    ],
)
def test_a_quantised_model_is_sparse_and_equals_the_loop(
    weights: str, activations: str | None, kv: Any
) -> None:
    both = Both(
        quantise(weights, activations), passes=[FrameInterleave(stride=2, kv=kv, blocks=":")]
    )
    want = looped(both.plain, 2, 5, kv=kv)
    torch.testing.assert_close(clip(both.fast, 5), want, rtol=0, atol=1e-5)
    module = both.fast.transformer
    assert module.report.variants[0].density < 0.8
    dense = module.program(inputs := module.last_inputs.kwargs()).at(inputs)
    linears = 2.0 * 5 * 20 * 32 * 32
    assert program_cost(dense).flops["linear"] > linears
    assert not torch.allclose(clip(both.plain, 5), want, atol=1e-3)


def test_quantised_after_and_adapters(captured: Any) -> None:
    both = Both()
    clips = [both.check()]
    counts = []
    for change in (
        quantise("qint8"),
        lambda pipe: pipe.to("cpu"),
        load(0, "a"),
        strengths(0.25),
    ):
        both.do(change)
        clips.append(both.check())
        counts.append(len(captured))
    assert counts == [2, 2, 3, 3]
    same = [torch.equal(clips[i], clips[i + 1]) for i in range(4)]
    assert same == [False, True, False, False]
