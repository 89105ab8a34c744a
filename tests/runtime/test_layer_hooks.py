"""Hooks of diffusers that a graph holds: layers that guiders skip, casting of weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.hooks import LayerSkipConfig, apply_layer_skip, apply_layerwise_casting
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook, FeedForwardSkipHook

import fisopt
from fisopt import FrameInterleave, InputError, PreconditionError
from fisopt.codegen.placement import Offload
from fisopt.runtime import captures
from tests.runtime.pairs import SPEC, Pair, build, video
from tests.zoo import zoo


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The captures that are made."""
    made: list[Any] = []
    real = captures.capture
    monkeypatch.setattr(captures, "capture", lambda *a: made.append(a) or real(*a))
    return made


def twice(_: Any, x: torch.Tensor) -> torch.Tensor:
    return 2 * x


SKIPS: dict[str, Callable[[Any], tuple[Any, ModelHook]]] = {
    "feed-forward": lambda m: (m.layers[1].mlp, FeedForwardSkipHook(1.0)),
    "attention": lambda m: (m.layers[0], AttentionProcessorSkipHook(twice)),
    "scores": lambda m: (m.layers[0], AttentionProcessorSkipHook(twice, True)),
}


def test_skipped_layers_are_variants_of_the_graph(counted: list[Any]) -> None:
    """As guiders do: hooks are put on for one call, and taken off again."""
    pair = Pair()
    for _ in range(2):
        for skip in SKIPS.values():
            pair.check(changed=False)
            module, hook = skip(pair.fast)
            registry = HookRegistry.check_if_exists_or_initialize(module)
            registry.register_hook(hook, "skip")
            pair.check()
            registry.remove_hook("skip")
    assert len(counted) == 1 + len(SKIPS)
    assert sum(pair.fast.report.recaptures.values()) == len(SKIPS), "a state that is back is none"


def test_skipped_blocks_keep_their_numbers() -> None:
    model, calls = build(), video(5)
    model.layers.extend(build().layers)
    passes = [FrameInterleave(stride=2, blocks="1,3", scope="block")]
    fast = fisopt.optimize(model, passes, spec=SPEC, backend="eager")
    registry = HookRegistry.check_if_exists_or_initialize(model.layers[2])
    registry.register_hook(AttentionProcessorSkipHook(lambda _, x: x), "skip")
    got = fast(**calls)
    program = fast.program(calls)
    assert program.block_paths == [f"layers.{i}" for i in range(4)]
    assert [(b.index, b.path) for b in program.blocks] == [(i, f"layers.{i}") for i in (0, 1, 3)]
    with pytest.raises(PreconditionError, match="blocks='2': the call skips them, as a guider"):
        fisopt.optimize(fast, [FrameInterleave(blocks="2")], backend="eager")(**calls)
    registry.remove_hook("skip")
    del model.layers[2]
    passes = [FrameInterleave(stride=2, blocks="1,2", scope="block")]
    without = fisopt.optimize(model, passes, spec=SPEC, backend="eager")
    assert torch.equal(got, without(**calls))


def test_a_forward_under_hooks_is_the_class_s_own() -> None:
    pair = Pair()
    layer = pair.model.layers[0].mlp
    layer.forward = lambda x: 2 * x
    HookRegistry.check_if_exists_or_initialize(layer).register_hook(FeedForwardSkipHook(1.0), "a")
    with pytest.raises(InputError, match="runs a forward that its class does not define"):
        pair.fast(**pair.inputs)


def test_layers_that_drop_at_random_are_refused() -> None:
    model: Any = deepcopy(zoo()["wan"].model)
    apply_layer_skip(model, LayerSkipConfig([1], fqn="blocks", dropout=0.5))
    with pytest.raises(InputError, match=r"hook: with dropout=0\.5 every run drops something else"):
        fisopt.optimize(model, [], backend="eager")


def casting(model: Any) -> None:
    apply_layerwise_casting(
        model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("out",)
    )


@pytest.mark.parametrize("offload", [None, Offload()])
def test_layerwise_casting_before_and_after(offload: Any) -> None:
    after = Pair(offload=offload)
    after.check(changed=False)
    casting(after.fast)
    after.check()
    casted = after.dense()
    before = Pair(offload=offload)
    casting(before.model)
    before.check()
    assert torch.equal(before.fast(**before.inputs), casted)
    assert after.model.layers[0].mlp.weight.dtype == torch.float8_e4m3fn
    assert after.model.out.weight.dtype == torch.float32


@pytest.mark.usefixtures("captured_once")
def test_casting_and_converting_through_a_pipeline() -> None:
    model: Any = deepcopy(zoo()["wan"].model)
    del model.blocks[2:]
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = WanPipeline(**held, scheduler=scheduler, transformer=model)
    pipe.set_progress_bar_config(disable=True)

    def clip() -> torch.Tensor:
        texts = torch.randn(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
        frames: torch.Tensor = pipe(
            prompt_embeds=texts[0].bfloat16(),
            negative_prompt_embeds=texts[1].bfloat16(),
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).frames
        return frames

    fisopt.optimize(pipe, [], backend="eager")
    pipe.to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16
    after = clip()
    fisopt.restore(pipe)
    want = clip()
    assert torch.equal(after, want)
    assert model.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    fisopt.optimize(pipe, [], backend="eager")
    assert torch.equal(clip(), want)
