"""The attention backend that diffusers was told is the one that runs, and no part of the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import fisopt
from fisopt import FrameInterleave, ModelSpec, Pass
from tests.zoo import zoo

WIDTH = 16
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))
PASSES = [FrameInterleave(stride=2, blocks=":")]
KERNEL = AttentionBackendName.SAGE
"""A backend whose package no test needs: a function takes its place."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of queries that the kernel was given; at first diffusers is told nothing."""
    seen: list[int] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
        seen.append(query.shape[1])
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        return scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)

    registry: Any = _AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", AttentionBackendName.NATIVE)
    monkeypatch.setitem(registry._backends, KERNEL, kernel)
    monkeypatch.setitem(registry._constraints, KERNEL, [])
    monkeypatch.setitem(registry._supported_arg_names, KERNEL, {"query", "key", "value", "scale"})
    where = "diffusers.models.attention_dispatch._check_attention_backend_requirements"
    monkeypatch.setattr(where, lambda backend: None)
    return seen


class Processor:
    """Dispatches, as those of diffusers do."""

    _attention_backend: Any = None

    def __call__(self, *tokens_first: Tensor) -> Tensor:
        out: Tensor = dispatch_attention_fn(*tokens_first, backend=self._attention_backend)
        return out


class Layer(nn.Module, AttentionModuleMixin):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.processor = nn.Linear(WIDTH, 3 * WIDTH), Processor()

    def forward(self, x: Tensor) -> Tensor:
        operands = (y.unflatten(-1, (4, -1)) for y in self.qkv(x).chunk(3, -1))
        return x + self.processor(*operands).flatten(2)


class Model(ModelMixin):
    """Tokens [B, 2 F, 16] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


def video() -> dict[str, Any]:
    return {"video": torch.randn(1, 10, WIDTH, generator=torch.Generator().manual_seed(0))}


def model() -> Any:
    return Model().eval().requires_grad_(False)


def optimized(original: Any, passes: Sequence[Pass] = (), **options: Any) -> Any:
    return fisopt.optimize(original, passes, spec=SPEC, backend="eager", **options)


def said(fast: Any) -> list[str]:
    """What the report says of attention, newest variant last."""
    variants = fast.report.variants
    return [str(c) for v in variants for c in v.choices if c.what == "attention"]


def equal(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["before", "after", "around"])
def test_a_backend_runs_after_the_passes(order: str, calls: list[int]) -> None:
    original = model()
    want = optimized(original, PASSES)(**video())
    if order == "before":
        original.set_attention_backend(KERNEL.value)
        original(**video())
        assert calls == [10, 10]
        calls.clear()
    fast = optimized(original, PASSES)
    if order == "after":
        fast.set_attention_backend(KERNEL.value)
    with attention_backend(KERNEL.value) if order == "around" else nullcontext():
        equal(fast(**video()), want)
    assert said(fast) == ["attention: diffusers' sage in 2 of 2 calls (as asked for)"]
    assert calls == [6, 8], "on the anchors of five frames of two tokens"


def test_it_may_change_and_an_option_goes_before_it(calls: list[int]) -> None:
    original = model()
    want, fast = original(**video()), optimized(original)
    layer = original.layers[0]
    changes: dict[str, Callable[[], object]] = {
        "flash in 2 of 2 calls": lambda: fast.set_attention_backend("_native_flash"),
        "torch's choice (diffusers sets flex": lambda: fast.set_attention_backend("flex"),
        "no cpu device has it": lambda: fast.set_attention_backend("_native_cudnn"),
        "_native_math in 2 of 2 calls": lambda: fast.set_attention_backend("_native_math"),
        "different layers, sage and _native_math": lambda: layer.set_attention_backend(KERNEL),
    }
    for line, change in changes.items():
        change()
        equal(fast(**video()), want)
        assert line in said(fast)[-1]
    fast.set_attention_backend(KERNEL.value)
    flash = optimized(original, attention="flash")
    equal(flash(**video()), want)
    assert "flash in 2 of 2 calls" in said(flash)[-1]
    torchs = optimized(original, attention="sdpa")
    equal(torchs(**video()), want)
    assert not said(torchs)
    assert not calls
    assert layer.processor._attention_backend is KERNEL, "as diffusers left it"


def test_what_the_backend_refuses_is_left_to_torch(calls: list[int]) -> None:
    def refuses(**operands: Any) -> Tensor:
        raise ValueError("no such head dimension")

    _AttentionBackendRegistry._backends[KERNEL] = refuses
    original = model()
    want, fast = original(**video()), optimized(original)
    fast.set_attention_backend(KERNEL.value)
    with pytest.warns(RuntimeWarning, match="sage is not used.*no such head dimension"):
        equal(fast(**video()), want)


@pytest.mark.usefixtures("captured_once")
def test_through_a_pipeline(calls: list[int]) -> None:
    wan: Any = copy.deepcopy(zoo()["wan"].model)
    del wan.blocks[1:]
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=wan,
    )
    pipe.set_progress_bar_config(disable=True)

    def clip() -> Tensor:
        return pipe(
            prompt_embeds=torch.ones(1, 5, wan.config.text_dim),
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames

    want = clip()
    fisopt.optimize(pipe, backend="eager")
    equal(clip(), want)
    pipe.transformer.set_attention_backend(KERNEL.value)
    equal(clip(), want)
    assert said(pipe.transformer) == ["attention: diffusers' sage in 2 of 2 calls (as asked for)"]
    assert len(calls) == 2 * 2
