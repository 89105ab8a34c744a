"""A changed model is seen: the optimised module gives what the original gives then, or refuses."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import InputError
from fisopt.runtime.fingerprint import Fingerprint
from tests.runtime import pairs
from tests.runtime.pairs import WIDTH, Layer, Pair


@pytest.fixture
def pair() -> Pair:
    return Pair()


class Scaled(nn.Module):
    """An adapter beside a layer, its scale in a dict, as those of LoRA."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.delta = base, nn.Linear(base.in_features, base.out_features)
        self.scaling, self.active, self.disabled = {"a": 0.5}, ["a"], False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for name in () if self.disabled else self.active:
            y = y + self.scaling[name] * self.delta(x)
        return y


class Made(nn.Module):
    """Makes a tensor of the default dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([2.0])


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def assigned(pair: Pair) -> None:
    other = {name: 1.5 * x for name, x in pair.model.state_dict().items()}
    pair.model.load_state_dict(other, assign=True)


def parameter(pair: Pair) -> None:
    pair.model.layers[1].mlp.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))


def data(pair: Pair) -> None:
    pair.model.layers[0].qkv.weight.data = torch.randn(3 * WIDTH, WIDTH)


def tied(pair: Pair) -> None:
    pair.model.layers[0].mlp.weight = pair.model.layers[1].mlp.weight


def untied(pair: Pair) -> None:
    pair.model.layers[0].mlp.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))


def test_weights(pair: Pair) -> None:
    pair.check(changed=False)
    for change in (assigned, parameter, data, tied, untied):
        change(pair)
        pair.check()
        again = fisopt.optimize(pair.fast, [], backend="eager")
        want = pair.dense()
        torch.testing.assert_close(again(**pair.inputs), want, rtol=0, atol=1e-6)
        program = pair.fast.program(pair.inputs)
        torch.testing.assert_close(program(**pair.inputs), want, rtol=0, atol=1e-6)


def test_parametrised_weights(pair: Pair) -> None:
    """A parameter that is a property of its layer meanwhile, and a buffer afterwards."""
    pair.check(changed=False)
    layer: Any = pair.model.layers[0].mlp
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0 *= 2
    pair.check()
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    pair.check()


def test_weights_that_a_functional_call_gives(pair: Pair) -> None:
    pair.check(changed=False)
    other = {name: 1.5 * x for name, x in pair.model.state_dict().items()}
    with torch.no_grad():
        want = torch.func.functional_call(pair.model, other, (), pair.inputs)
    got = torch.func.functional_call(pair.fast, other, (), pair.inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    pair.check(changed=False)


def test_tracing_an_optimised_module_is_refused_and_compiling_around_it_is_not(pair: Pair) -> None:
    pair.check(changed=False)
    refused = pytest.raises(InputError, match=r"cannot be traced.*fisopt\.export")
    with refused:
        torch.export.export(pair.fast, (), pair.inputs)
    with refused:
        torch.jit.trace(pair.fast, example_kwarg_inputs=pair.inputs)
    around = torch.compile(lambda **call: 2 * pair.fast(**call), backend="eager")
    torch.testing.assert_close(around(**pair.inputs), 2 * pair.dense(), rtol=0, atol=1e-6)


def test_weights_of_another_form_are_captured(pair: Pair) -> None:
    wide, narrow = nn.Parameter(torch.randn(2 * WIDTH, WIDTH)), nn.Linear(2 * WIDTH, WIDTH)
    pair.model.layers[1].mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), narrow)
    pair.check()
    pair.model.layers[1].mlp[0].weight = nn.Parameter(wide[:5])
    pair.model.layers[1].mlp[0].bias = nn.Parameter(torch.randn(5))
    narrow.weight = nn.Parameter(torch.randn(WIDTH, 5))
    pair.check()
    assert "weight was Parameter(16, 8)" in str(pair.fast.report)


def test_weights_under_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiler)
    pair = Pair(backend="inductor")
    pair.check(changed=False)
    for change in (assigned, parameter, data):
        change(pair)
        pair.check()
    assert not pair.fast.report.changes


def test_replaced_weights_are_not_captured_again_and_not_kept(pair: Pair) -> None:
    pair.check(changed=False)
    old = [weakref.ref(p) for p in pair.model.parameters()]
    assigned(pair)
    pair.check()
    assert not pair.fast.report.changes
    gc.collect()
    assert not any(ref() is not None for ref in old)


def layer(pair: Pair) -> None:
    pair.model.layers[0].mlp = Doubled(WIDTH, WIDTH)


def block(pair: Pair) -> None:
    pair.model.layers[1] = copy.deepcopy(pair.model.layers[0])


def blocks(pair: Pair) -> None:
    pair.model.layers.append(copy.deepcopy(pair.model.layers[0]))


def adapter(pair: Pair) -> None:
    pair.model.layers[0].mlp = Scaled(pair.model.layers[0].mlp)


def hook(pair: Pair) -> None:
    pair.model.layers[0].mlp.register_forward_hook(lambda *call: 3 * call[2])


def pre_hook(pair: Pair) -> None:
    pair.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: (2 * args[0],))


def root_hook(pair: Pair) -> None:
    pair.fast.register_forward_hook(lambda *call: 3 * call[2])


def attribute(pair: Pair) -> None:
    pair.model.layers[0].scale = 0.5


def held_object(pair: Pair) -> None:
    pair.model.layers[0].options.gain = 0.5


def another_object(pair: Pair) -> None:
    pair.model.layers[0].options = pairs.Options()
    pair.check(changed=False)
    pair.model.layers[0].options.gain = 2.0


def through_it(pair: Pair) -> None:
    pair.fast.out = Doubled(WIDTH, WIDTH)


def applied(pair: Pair) -> None:
    def double(module: nn.Module) -> None:
        if isinstance(module, Layer):
            module.scale = 2.0

    pair.fast.apply(double)


CHANGES = [
    layer,
    block,
    blocks,
    adapter,
    hook,
    pre_hook,
    root_hook,
    attribute,
    held_object,
    another_object,
    through_it,
    applied,
]


@pytest.mark.parametrize("change", CHANGES)
def test_structure(pair: Pair, change: Callable[[Pair], None]) -> None:
    pair.check(changed=False)
    change(pair)
    pair.check()
    seen = [line for line in pair.fast.report.changes if line.startswith("recaptured: ")]
    assert bool(seen) == (change is not root_hook), (
        "a hook of the whole model runs around the graph"
    )


def test_adapters() -> None:
    pair = Pair()
    adapter(pair)
    pair.check()
    scaled: Any = pair.model.layers[0].mlp
    before = pair.dense()
    scaled.scaling["a"] = 2.0
    pair.check()
    scaled.disabled = True
    pair.check(changed=False)
    scaled.disabled = False
    scaled.active.clear()
    pair.check(changed=False)
    scaled.active.append("a")
    scaled.scaling["a"] = 0.5
    pair.check()
    assert torch.equal(pair.dense(), before)
    assert "scaling" in str(pair.fast.report)


def test_a_list_that_was_exchanged_for_an_equal_one_is_still_watched(pair: Pair) -> None:
    adapter(pair)
    pair.check()
    scaled: Any = pair.model.layers[0].mlp
    scaled.active = ["a"]
    pair.check()
    scaled.active.clear()
    pair.check(changed=False)


def test_a_state_that_is_back_is_not_captured_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.check(changed=False)
    handle = pair.model.layers[0].mlp.register_forward_hook(lambda *call: 3 * call[2])
    pair.check()
    handle.remove()
    monkeypatch.setattr("fisopt.runtime.captures.capture", None)
    pair.check(changed=False)
    pair.fast.original.to(torch.float32)
    pair.check(changed=False)


def test_what_python_keeps_in_a_class_is_no_change(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying fills in the slots of a class, asking for its annotations an empty dict."""

    class Settings:
        gain = 1.0

    pair.model.layers[0].settings = Settings()
    pair.check(changed=False)
    monkeypatch.setattr("fisopt.runtime.captures.capture", None)
    copy.deepcopy(pair.model)
    copy.copy(pair.model.layers[0].settings)
    assert Settings.__annotations__ == {}
    pair.check(changed=False)


@pytest.mark.parametrize("what", ["method", "function", "operator"])
def test_code_that_is_exchanged(pair: Pair, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.check(changed=False)
    if what == "method":
        monkeypatch.setattr(Layer, "split", lambda _, x: (x, x, x))
    elif what == "function":
        monkeypatch.setattr(pairs, "activate", torch.tanh)
    else:
        monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *q: 2 * q[-1])
    pair.check()
    monkeypatch.undo()
    pair.check(changed=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_part_of_the_key(pair: Pair, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        pair.check()
    pair.check(changed=False)
    with torch.autocast("cpu", dtype):
        pair.check()


def test_default_dtype_is_part_of_the_key(pair: Pair) -> None:
    pair.model.out = Made()
    assert pair.fast(**pair.inputs).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert pair.dense().dtype == pair.fast(**pair.inputs).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_training_mode_is_refused_at_the_next_call(pair: Pair) -> None:
    pair.model.train()
    with pytest.raises(InputError, match="training mode"):
        pair.fast(**pair.inputs)


def run(pair: Pair, before: bool) -> None:
    """Optimise the model, or call what was optimised before."""
    if before:
        fisopt.optimize(pair.model, [], pair.inputs, pair.fast.spec)
    else:
        pair.fast(**pair.inputs)


def cached(module: Any, *args: Any, **kwargs: Any) -> Any:
    return kwargs.get("video", *args)


@pytest.mark.parametrize("when", ["before", "after", "through the optimised module"])
@pytest.mark.parametrize("what", ["model", "layer"])
def test_an_exchanged_forward_of_an_instance_is_refused(pair: Pair, when: str, what: str) -> None:
    target: Any = pair.model if what == "model" else pair.model.layers[0]
    if when == "through the optimised module":
        target = pair.fast if what == "model" else pair.fast.layers[0]
    target.forward = MethodType(cached, target)
    with pytest.raises(InputError, match=r"runs a forward .*test_fingerprint\.cached on the inst"):
        run(pair, when == "before")
    del target.forward
    pair.check(changed=False)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_an_exchanged_forward_of_a_class_is_refused(
    pair: Pair, before: bool, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = functools.wraps(Layer.forward)(lambda *x, **y: cached(*x, **y)) if wrapped else cached
    monkeypatch.setattr(Layer, "forward", forward)
    with pytest.raises(InputError, match="on the class Layer"):
        run(pair, before)
    monkeypatch.undo()
    pair.check(changed=False)


def test_an_exchanged_forward_of_the_made_class_is_refused(pair: Pair) -> None:
    kept = vars(type(pair.fast))["forward"]
    type(pair.fast).forward = cached  # type: ignore[method-assign]
    with pytest.raises(InputError, match="the forward of the optimised module's class"):
        pair.fast(**pair.inputs)
    type(pair.fast).forward = kept
    pair.check(changed=False)


def test_hooks_that_no_graph_runs_are_refused_at_the_next_call(pair: Pair) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(pair.fast.layers[0])
    registry.register_hook(ModelHook(), "foreign")
    with pytest.raises(InputError, match=r"layers\.0 runs under hooks \(foreign\)"):
        pair.fast(**pair.inputs)


def test_offloading_of_groups_is_refused_at_the_next_call(pair: Pair) -> None:
    apply_group_offloading(
        pair.model, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    )
    with pytest.raises(InputError, match="runs under hooks"):
        pair.fast(**pair.inputs)


def test_a_difference_is_said_by_path() -> None:
    model = pairs.build()
    before = Fingerprint(model)
    assert before.holds()
    model.layers[0].scale = 4
    assert not before.holds()
    now = Fingerprint(model)
    assert not now.same(before)
    assert now.difference(before) == "layers.0.scale was 1.0, is 4"
    model.layers[0].scale = 1.0
    assert Fingerprint(model).same(before)
