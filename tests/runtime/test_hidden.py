"""What no module holds as a layer or a weight is part of the state: lists, arrays, class data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import InputError
from fisopt.runtime.fingerprint import Fingerprint
from tests.runtime import pairs
from tests.runtime.pairs import WIDTH, Pair
from tests.runtime.test_fingerprint import run


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH).requires_grad_(False).eval()


class Gain:
    """Holds a layer and an array, as an attention processor may."""

    table = np.ones(1, np.float32)

    def __init__(self) -> None:
        self.layer, self.array = linear(), np.ones(2)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * float(self.table[0]) * float(self.array[1])
        return y


class Hiding(nn.Module):
    """Computes with layers and numbers that torch does not know of."""

    gains: dict[str, list[float]] = {"all": [1.0]}  # noqa: RUF012 - changed in place

    def __init__(self) -> None:
        super().__init__()
        self.base, self.listed, self.named = linear(), [linear()], {"a": linear()}
        self.gain = Gain()

    def forward(self, x: Tensor, more: list[float] = [1.0]) -> Tensor:  # noqa: B006
        y = self.base(x) + self.listed[0](x) + self.named["a"](x) + self.gain(x)
        return y * self.gains["all"][0] * more[0]


def exchanged(module: Any) -> None:
    module.weight = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)


def data(module: Any) -> None:
    module.weight.data = torch.randn(WIDTH, WIDTH)


def turned(module: Any) -> None:
    module.weight.data = module.weight.data.t()


def in_place(module: Any) -> None:
    module.weight.mul_(3)


def hooked(module: Any) -> None:
    module.register_forward_hook(lambda *call: 3 * call[2])


CHANGES: dict[str, Callable[[Any], object]] = {
    "a weight of a layer in a list": lambda m: exchanged(m.listed[0]),
    "the data of one": lambda m: data(m.listed[0]),
    "its layout": lambda m: turned(m.listed[0]),
    "its numbers": lambda m: in_place(m.listed[0]),
    "its hooks": lambda m: hooked(m.listed[0]),
    "the list": lambda m: m.listed.__setitem__(0, linear()),
    "a layer in a dict": lambda m: exchanged(m.named["a"]),
    "a layer of an object": lambda m: data(m.gain.layer),
    "the layout of a weight": lambda m: turned(m.base),
    "an array": lambda m: m.gain.array.__setitem__(1, 3.0),
    "an array of a class": lambda m: Gain.table.__setitem__(0, 3.0),
    "a list of a class": lambda m: m.gains["all"].__setitem__(0, 3.0),
    "a default": lambda m: Hiding.forward.__defaults__[0].__setitem__(0, 3.0),  # type: ignore[index]
}


@pytest.fixture
def hiding(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair whose model computes with what is hidden."""

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model.layers[0].mlp = Hiding()
        return model

    model: Any = pairs.build()
    monkeypatch.setattr(pairs, "build", build)
    return Pair()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_hidden_change_is_seen(hiding: Pair, change: Callable[[Any], object]) -> None:
    hiding.check(changed=False)
    change(hiding.model.layers[0].mlp)
    hiding.check()
    Gain.table[0] = Hiding.gains["all"][0] = Hiding.forward.__defaults__[0][0] = 1.0  # type: ignore[index]


def test_a_change_of_an_array_is_said(hiding: Pair) -> None:
    before = Fingerprint(hiding.model)
    hiding.model.layers[0].mlp.gain.array[1] = 3.0
    difference = Fingerprint(hiding.model).difference(before)
    assert difference == "layers.0.mlp.gain.array is another ndarray"


def test_an_exchanged_forward_of_a_hidden_layer_is_refused(hiding: Pair) -> None:
    hidden = hiding.model.layers[0].mlp.listed[0]  # type: ignore[union-attr,index]
    hidden.forward = lambda x: x
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.listed\[0\] runs a forward"):
        hiding.fast(**hiding.inputs)


class Packed(nn.Parameter):
    """Packed numbers, unpacked by the layer: what a graph would read are the packed ones."""

    scale: float

    def __new__(cls, packed: Tensor, scale: float) -> Self:
        made: Self = torch.Tensor._make_subclass(cls, packed, False)
        made.scale = scale
        return made


class PackedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.as_subclass(Tensor) * getattr(self.weight, "scale", 1.0)
        return nn.functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("before", [True, False])
def test_weights_of_a_class_that_export_does_not_follow_are_refused(before: bool) -> None:
    pair, layer = Pair(), PackedLinear(WIDTH, WIDTH).requires_grad_(False)
    layer.weight = Packed(layer.weight.detach(), 3.0)
    pair.model.layers[0].mlp = layer
    with pytest.raises(InputError, match=r"layers\.0\.mlp holds 'weight', a .*Packed.*dequantise"):
        run(pair, before)


def test_an_export_holds_the_weights_of_its_moment(tmp_path: Path) -> None:
    pair = Pair()
    pair.check(changed=False)
    twice = {name: 2 * x for name, x in pair.model.state_dict().items()}
    pair.model.load_state_dict(twice, assign=True)
    for name, gain in (("weights", 1.0), ("attribute", 3.0)):
        pair.model.layers[0].options.gain = gain  # type: ignore[union-attr]
        path = fisopt.export(pair.fast, tmp_path / name, example_inputs=pair.inputs)
        loaded = fisopt.load(path)
        torch.testing.assert_close(loaded(**pair.inputs), pair.dense(), rtol=0, atol=1e-6)
