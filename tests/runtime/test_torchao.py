"""TorchAO: a model that was quantised stays as it is, sparse, with adapters, with other weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fisopt
from fisopt import FrameInterleave, Program
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.tracing.weights import place_of
from tests.runtime.pipes import (
    CLOSE,
    SPEC,
    Both,
    Change,
    clip,
    load,
    looped,
    pipeline,
    strengths,
    transformer,
)

ao = pytest.importorskip("torchao.quantization")
FORMS = ["int8", "float8", "int8 rows", "float8 rows", "float8 tensor"]


def config(form: str) -> Any:
    """What a user asks TorchAO for."""
    match form:
        case "int8":
            return ao.Int8WeightOnlyConfig()
        case "float8":
            return ao.Float8WeightOnlyConfig()
        case "int8 rows":
            return ao.Int8DynamicActivationInt8WeightConfig()
    granularity = ao.PerRow() if form == "float8 rows" else ao.PerTensor()
    return ao.Float8DynamicActivationFloat8WeightConfig(granularity=granularity)


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchAO refuses activations in FP8 on a CPU, which has the product all the same."""
    monkeypatch.setattr(ao.quant_api, "is_sm_at_least_89", lambda *_: True, raising=False)
    monkeypatch.setattr(ao.quant_api, "_check_hardware_support", lambda *_: None, raising=False)


def quantise(form: str) -> Change:
    """Quantise the linears of the blocks in place, as a user does."""

    def change(pipe: Any) -> None:
        def inside(module: nn.Module, path: str) -> bool:
            return isinstance(module, nn.Linear) and "blocks" in path and "lora" not in path

        ao.quantize_(pipe.transformer, config(form), filter_fn=inside)

    return change


def in_bfloat16(depth: int = 1) -> list[Any]:
    return [transformer(depth).to(torch.bfloat16)]


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_model_is_sparse_and_equals_the_loop(form: str) -> None:
    sparse = [FrameInterleave(stride=2, blocks=":")]
    both = Both(quantise(form), models=in_bfloat16(), passes=sparse)
    want = looped(both.plain, 2, 5)
    torch.testing.assert_close(clip(both.fast, 5), want, rtol=0, atol=CLOSE)
    module = both.fast.transformer
    assert module.report.variants[0].density < 0.7
    named = "computed from all tokens at once, such as one scale for a whole activation"
    assert (named in str(module.report)) == (form == "float8 tensor")
    inputs = module.last_inputs.kwargs()
    dense = module.program(inputs).at(inputs)
    assert torch.equal(dense(**inputs)[0], both.plain.transformer(**inputs)[0])
    assert program_cost(dense).flops["linear"] == program_cost(plain_program()).flops["linear"]
    held = [str(n.target) for n in dense.graph.nodes if n.op == "get_attr"]
    assert all(place_of(module.original, path) for path in held), "nothing is held twice"


@cache
def plain_program() -> Program:
    """The same model, not quantised."""
    inputs = {
        "hidden_states": torch.zeros(1, 4, 5, 2, 2, dtype=torch.bfloat16),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 5, 16, dtype=torch.bfloat16),
    }
    return fisopt.capture(in_bfloat16()[0], inputs, SPEC)


def test_quantised_after_and_exchanged(captured: Any) -> None:
    """Weights of one form are read where the model holds them; another form is captured."""
    both = Both(models=in_bfloat16())
    clips = [both.check()]
    other = pipeline(transformer(seed=3).to(torch.bfloat16))
    quantise("int8")(other)
    layer = other.transformer.blocks[0].ffn
    changes: list[Change] = [
        quantise("int8"),
        lambda pipe: setattr(pipe.transformer.blocks[0].ffn, "weight", layer.weight),
        lambda pipe: pipe.to("cpu"),
        lambda pipe: quantise("int8 rows")(unquantised(pipe)),
        lambda pipe: pipe.to(torch.float32),
    ]
    counts = []
    for change in changes:
        both.do(change)
        clips.append(both.check())
        counts.append(len(captured))
    assert counts == [2, 2, 2, 3, 4]
    same = [torch.equal(clips[i], clips[i + 1]) for i in range(5)]
    assert same == [False, False, True, False, False]


def unquantised(pipe: Any) -> Any:
    """Put plain weights of a seed where the quantised ones are."""
    for mine, other in zip(pipe.transformer.blocks, transformer().blocks, strict=True):
        for name, layer in mine.named_children():
            layer.weight = nn.Parameter(other.get_submodule(name).weight.bfloat16())
    return pipe


def test_the_summary_counts_what_is_stored() -> None:
    pipe = pipeline(transformer())
    (full,) = fisopt.summary(pipe).transformers[0].weights.values()
    layer = pipe.transformer.blocks[0].ffn
    ao.quantize_(layer, config("int8"))
    (less,) = fisopt.summary(pipe).transformers[0].weights.values()
    numbers, rows = layer.weight.numel(), layer.weight.shape[0]
    assert full - less == pytest.approx(3 * numbers, abs=8 * rows), "one byte a number, and scales"


def test_adapters_over_quantised_weights(captured: Any) -> None:
    both = Both(quantise("int8"), models=in_bfloat16())
    before = both.check()
    both.do(load(0, "a"))
    assert "Torchao" in type(both.fast.transformer.blocks[0].to_q).__name__
    clips = [both.check()]
    both.do(strengths(0.25))
    clips.append(both.check())
    assert len(captured) == 2
    assert not torch.equal(clips[0], clips[1])
    both.do(lambda pipe: pipe.unload_lora_weights())
    assert torch.equal(both.check(), before)
    assert len(captured) == 2
