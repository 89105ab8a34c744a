"""LoRA through peft and diffusers: at every call the result is that of the original."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer

import fisopt
from fisopt import FrameInterleave, InputError, PreconditionError
from tests.runtime.pairs import SPEC, Pair, video
from tests.zoo import zoo


def lora(*targets: str, rank: int = 4, **options: Any) -> LoraConfig:
    """A config whose adapters differ from zero."""
    return LoraConfig(r=rank, target_modules=list(targets), init_lora_weights=False, **options)


def inject(model: Any, name: str, *targets: str, **options: Any) -> None:
    inject_adapter_in_model(lora(*targets, **options), model, name)  # type: ignore[no-untyped-call]


def each(model: Any, method: str, *args: Any) -> None:
    """Call a method of every layer with adapters."""
    for layer in [m for m in model.modules() if isinstance(m, BaseTunerLayer)]:
        getattr(layer, method)(*args)


Change = Callable[[Any], object]
CHANGES: list[Change] = [
    lambda m: inject(m, "a", "qkv", "mlp"),
    lambda m: each(m, "set_scale", "a", 0.3),
    lambda m: inject(m, "b", "mlp", "out", rank=2),
    lambda m: each(m, "set_adapter", ["a", "b"]),
    lambda m: each(m, "enable_adapters", False),
    lambda m: each(m, "enable_adapters", True),
    lambda m: each(m, "merge"),
    lambda m: each(m, "unmerge"),
    lambda m: each(m, "delete_adapter", "a"),
]


@pytest.mark.parametrize("through", ["original", "optimised"])
def test_each_state_is_the_original_s(through: str) -> None:
    pair = Pair()
    pair.check(changed=False)
    for change in CHANGES:
        change(pair.model if through == "original" else pair.fast)
        pair.before = pair.before * 0
        pair.check()
    again = fisopt.optimize(pair.fast, [], backend="eager")
    assert torch.equal(again(**pair.inputs), pair.fast(**pair.inputs)), "optimised anew"


def test_loading_and_unloading_through_the_pipeline() -> None:
    model: Any = deepcopy(zoo()["wan"].model)
    del model.blocks[1:]
    inputs, donor = zoo()["wan"].inputs(2, 2, 2) | {"return_dict": False}, deepcopy(model)
    donor.add_adapter(lora("to_q", "to_v"), "a")
    weights = {
        f"transformer.{k}": v for k, v in get_peft_model_state_dict(donor, adapter_name="a").items()
    }
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=model,
    )
    fisopt.optimize(pipe, [], backend="eager")
    before = pipe.transformer(**inputs)[0]
    pipe.load_lora_weights(weights, adapter_name="a")
    with_it = pipe.transformer(**inputs)[0]
    with torch.no_grad():
        want = model(**inputs)[0]
    torch.testing.assert_close(with_it, want, rtol=0, atol=1e-6)
    assert not torch.allclose(with_it, before, atol=1e-4)
    pipe.unload_lora_weights()
    assert torch.equal(pipe.transformer(**inputs)[0], before)


def test_each_layer_has_active_adapters_of_its_own() -> None:
    """Also where layers share the list that says so, as those of diffusers do."""
    pair, a, b = Pair(), ["a"], ["b"]
    for name in ("a", "b"):
        inject(pair.model, name, "qkv", "mlp")
    layers = [m for m in pair.model.modules() if isinstance(m, BaseTunerLayer)]
    for wanted in ((a, b, b, a), (a, b, a, b), (a, b, b, a)):
        for layer, active in zip(layers, wanted, strict=True):
            layer.set_adapter(active)
            assert layer._active_adapter is active
        pair.check()


@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_other_adapters_need_not_be_set_to_evaluation(kind: Any, captured: Any) -> None:
    """peft leaves their layers in training mode, where they would draw numbers to drop."""
    pair = Pair()
    config = kind(r=2, target_modules=["mlp"], init_weights=False)
    inject_adapter_in_model(config, pair.model, "a")  # type: ignore[no-untyped-call]
    assert any(layer.training for layer in pair.model.layers[0].modules())
    pair.check()
    each(pair.model, "set_scale", "a", 0.3)
    pair.check()
    assert len(captured) == (1 if kind is LoKrConfig else 2), "strengths of LoKr are inputs"


def test_dropout_of_an_adapter_that_trains_is_refused() -> None:
    pair, inputs = Pair(), video(5)
    inject(pair.model, "a", "mlp", lora_dropout=0.5)
    sparse = [FrameInterleave(blocks=":")]
    with pytest.raises(PreconditionError, match=r"has dropout \(0\.5\).*model\.eval\(\)"):
        fisopt.optimize(pair.model, sparse, inputs, SPEC, backend="eager")
    fisopt.optimize(pair.model.eval(), sparse, inputs, SPEC, backend="eager")


def test_a_wrapper_of_peft_is_named_with_what_it_holds() -> None:
    wrapped = get_peft_model(deepcopy(zoo()["wan"].model), lora("to_q")).eval()
    held = "no adapter for PeftModel, which holds a WanTransformer3DModel as 'base_model.model'"
    with pytest.raises(InputError, match=held):
        fisopt.optimize(wrapped, [], backend="eager")
