"""What a model holds outside of its own dicts is part of its state."""

from __future__ import annotations

import functools
from array import array
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fisopt import InputError
from fisopt.runtime.fingerprint import Fingerprint
from tests.runtime import pairs
from tests.runtime.pairs import Layer, Pair

GAINS = {"gain": 1.0}


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Hook:
    """A hook that is an object."""

    def __init__(self) -> None:
        self.gain = 1.0

    def __call__(self, module: Any, args: Any, out: Tensor) -> Tensor:
        return out * self.gain

    def run(self, module: Any, args: Any, out: Tensor) -> Tensor:
        return out * self.gain


class Twice(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def gained(gain: float, module: Any, args: Any, out: Tensor) -> Tensor:
    return out * gain


def by_global(module: Any, args: Any, out: Tensor) -> Tensor:
    return out * GAINS["gain"]


def by_default(module: Any, args: Any, out: Tensor, *, gain: float = 1.0) -> Tensor:
    return out * gain


Change = Callable[[], object]


def closure() -> tuple[Any, Change]:
    gain = 1.0

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        return out * gain

    def change() -> None:
        nonlocal gain
        gain = 3.0

    return hook, change


def closed_dict() -> tuple[Any, Change]:
    held = {"gain": 1.0}
    return lambda module, args, out: out * held["gain"], lambda: held.update(gain=3.0)


def hook_object() -> tuple[Any, Change]:
    hook = Hook()
    return hook, lambda: setattr(hook, "gain", 3.0)


def bound() -> tuple[Any, Change]:
    hook = Hook()
    return hook.run, lambda: setattr(hook, "gain", 3.0)


def partial() -> tuple[Any, Change]:
    held = SimpleNamespace(gain=1.0)
    hook = functools.partial(lambda held, module, args, out: out * held.gain, held)
    return hook, lambda: setattr(held, "gain", 3.0)


def default() -> tuple[Any, Change]:
    return by_default, lambda: by_default.__kwdefaults__.update(gain=3.0)  # type: ignore[union-attr]


def module_level() -> tuple[Any, Change]:
    return by_global, lambda: GAINS.update(gain=3.0)


HOOKS = [closure, closed_dict, hook_object, bound, partial, default, module_level]


@pytest.mark.parametrize("make", HOOKS)
def test_what_a_hook_reads(make: Callable[[], tuple[Any, Change]]) -> None:
    model = pairs.build()
    hook, change = make()
    model.layers[0].mlp.register_forward_hook(hook)
    before = Fingerprint(model)
    assert before.holds()
    change()
    assert not before.holds()
    assert not Fingerprint(model).same(before)
    GAINS["gain"] = 1.0
    by_default.__kwdefaults__["gain"] = 1.0  # type: ignore[index]


def chain() -> tuple[Any, Change]:
    first = last = SimpleNamespace()
    for _ in range(7):
        last.next = SimpleNamespace()
        last = last.next
    return first, lambda: setattr(last, "gain", 3.0)


def test_what_an_attribute_holds() -> None:
    slotted, queue, numbers, raw = Slotted(), deque([1.0]), array("f", [1.0]), bytearray(b"1")
    changes: list[tuple[Any, Change]] = [
        (slotted, lambda: setattr(slotted, "gain", 3.0)),
        (queue, lambda: queue.append(3.0)),
        (numbers, lambda: numbers.append(3.0)),
        (raw, lambda: raw.append(3)),
        chain(),
    ]
    for held, change in changes:
        model: Any = pairs.build()
        model.layers[0].options = held
        before = Fingerprint(model)
        assert before.holds()
        change()
        assert not before.holds(), held
        assert not Fingerprint(model).same(before)


def test_hooks_and_classes_that_change_are_captured_again() -> None:
    pair = Pair()
    hook, change = closure()
    pair.model.layers[0].mlp.register_forward_hook(hook)
    pair.check(changed=False)
    change()
    pair.check()
    pair.model.layers[1].__class__ = Twice
    pair.check()
    assert "layers.1 was a Layer, is a Twice" in str(pair.fast.report)


@pytest.mark.parametrize("name", ["silu", "linear"])
def test_an_exchanged_function_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Fingerprint(pairs.build())
    monkeypatch.setattr(functional, name, lambda *args: args[0])
    assert not before.holds()


def test_what_capture_leaves_behind_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, calls = Pair(), [0]

    def count(*_: Any) -> None:
        calls.append(len(calls))

    pair.model.layers[0].mlp.register_forward_hook(count)
    with pytest.warns(UserWarning, match="hooks run on"):
        pair.fast(**pair.inputs)
    monkeypatch.setattr("fisopt.runtime.captures.capture", None)
    pair.fast(**pair.inputs)


def test_hooks_of_every_module_are_refused_but_those_of_torch() -> None:
    pair = Pair()
    pair.check(changed=False)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: 2 * out if isinstance(module, nn.Linear) else None
    )
    try:
        with pytest.raises(InputError, match="is a hook of every module"):
            pair.fast(**pair.inputs)
    finally:
        handle.remove()
    pair.check(changed=False)
    with FlopCounterMode(display=False), torch.no_grad():
        pair.check(changed=False)
