"""Capture leaves a model, and all that it reaches, as it was."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import fisopt
from fisopt import ModelSpec
from tests import plain_dit
from tests.plain_dit import Form

GRID = (5, 2, 3)
SPEC = ModelSpec(blocks=("layers.*",), grid=GRID)
TABLES: dict[int, Tensor] = {}


@functools.lru_cache
def table(length: int) -> Tensor:
    return torch.arange(length).float()[:, None]


def table_in_default(length: int, known: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return known.setdefault(length, torch.arange(length).float()[:, None])


class Processor:
    """A plain object on a layer, as attention processors are."""

    shared: Tensor | None = None

    def __init__(self) -> None:
        self.tables: dict[int, Tensor] = {}
        self.calls = 0

    @functools.lru_cache  # noqa: B019
    def table(self, length: int) -> Tensor:
        return table.__wrapped__(length)


class Slotted:
    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: Tensor | None = None


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.processor, self.slotted = Processor(), Slotted()
        self.table: Tensor | None = None
        self.tables: dict[str, Any] = {"inner": {}}
        self.past: list[Tensor] = []
        self.lengths: set[int] = set()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)
        self.constant = torch.zeros(3)

    def forward(self, video: Tensor, remember: Callable[[Layer, Tensor], Tensor]) -> Tensor:
        return video + self.linear(video) + remember(self, video)


class Model(nn.Module):
    """Blocks that add a table of positions, which ``remember`` makes and keeps somewhere."""

    def __init__(self, remember: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.remember = remember

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video, self.remember)
        return video


def on_the_layer(layer: Layer, x: Tensor) -> Tensor:
    if layer.table is None or len(layer.table) != x.shape[1]:
        layer.table = table.__wrapped__(x.shape[1])
    return layer.table


def new_attribute(layer: Layer, x: Tensor) -> Tensor:
    layer.fresh = table.__wrapped__(x.shape[1])
    return layer.fresh


def in_a_dict(layer: Layer, x: Tensor) -> Tensor:
    layer.tables["inner"][x.shape[1]] = table.__wrapped__(x.shape[1])
    return layer.tables["inner"][x.shape[1]]


def in_a_list(layer: Layer, x: Tensor) -> Tensor:
    layer.past.append(x)
    layer.lengths.add(int(x.shape[1]))
    return layer.past[-1] * 0.5


def on_a_processor(layer: Layer, x: Tensor) -> Tensor:
    processor = layer.processor
    processor.calls += 1
    return processor.tables.setdefault(x.shape[1], table.__wrapped__(x.shape[1]))


def in_a_slot(layer: Layer, x: Tensor) -> Tensor:
    layer.slotted.last = x
    return x * 0.5


def on_a_class(layer: Layer, x: Tensor) -> Tensor:
    type(layer.processor).shared = x
    return x * 0.5


def in_the_file(layer: Layer, x: Tensor) -> Tensor:
    del layer
    return TABLES.setdefault(x.shape[1], table.__wrapped__(x.shape[1]))


def in_a_cached_function(layer: Layer, x: Tensor) -> Tensor:
    del layer
    return table(x.shape[1])


def in_a_cached_method(layer: Layer, x: Tensor) -> Tensor:
    return layer.processor.table(x.shape[1])


def in_a_default(layer: Layer, x: Tensor) -> Tensor:
    del layer
    return table_in_default(x.shape[1])


def in_a_buffer(layer: Layer, x: Tensor) -> Tensor:
    layer.calls += 1
    return x * 0.5


def in_a_new_buffer(layer: Layer, x: Tensor) -> Tensor:
    layer.late = x.mean()
    return x * 0.5


def in_a_constant(layer: Layer, x: Tensor) -> Tensor:
    layer.constant[0] = 1
    return x * 0.5


def at_random(layer: Layer, x: Tensor) -> Tensor:
    del layer
    return x * random.random() + torch.rand(1) * 0


def state(model: nn.Module) -> dict[str, Any]:
    """All that a model and this file hold, by name; tensors by identity and value."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            assert not isinstance(value, FakeTensor), name
            found[name] = (id(value), value.requires_grad, value.tolist(), list(vars(value)))
        elif isinstance(value, dict):
            found[name] = list(value)
            for key, part in value.items():
                walk(f"{name}.{key}", part)
        elif isinstance(value, (list, set, tuple)):
            found[name] = len(value)
            for key, part in enumerate(value):
                walk(f"{name}.{key}", part)
        elif isinstance(value, (nn.Module, Processor)):
            walk(name, vars(value))
        elif isinstance(value, Slotted):
            walk(name, value.last)
        else:
            found[name] = repr(value)

    walk("model", model)
    walk("file", [TABLES, table_in_default.__defaults__, Processor.shared])
    walk("random", [torch.get_rng_state().tolist(), random.getstate()])
    return found


WAYS = [
    on_the_layer,
    new_attribute,
    in_a_dict,
    in_a_list,
    on_a_processor,
    in_a_slot,
    on_a_class,
    in_the_file,
    in_a_cached_function,
    in_a_cached_method,
    in_a_default,
    in_a_buffer,
    in_a_new_buffer,
    at_random,
]


@pytest.mark.parametrize("remember", WAYS, ids=lambda way: way.__name__)
def test_what_forward_keeps_is_put_back(remember: Callable[[Layer, Tensor], Tensor]) -> None:
    model = Model(remember).eval().requires_grad_(False)
    inputs = {"video": torch.randn(1, 30, 4)}
    before = state(model)
    program = fisopt.capture(model, inputs, spec=SPEC)
    assert state(model) == before
    assert not vars(inputs["video"]), "a mark on the user's tensor"
    want = model(**inputs)
    assert type(want) is Tensor
    assert type(table(30)) is Tensor
    if remember is not at_random:
        torch.testing.assert_close(program(**inputs), want, rtol=0, atol=0)


def test_a_constant_that_is_written_is_refused() -> None:
    model = Model(in_a_constant).eval().requires_grad_(False)
    inputs = {"video": torch.randn(1, 30, 4)}
    before = state(model)
    with pytest.raises(fisopt.CaptureError, match=r"layers\.0\.constant is mutated"):
        fisopt.capture(model, inputs, spec=SPEC)
    assert state(model) == before


def fails_after_writing(layer: Layer, x: Tensor) -> Tensor:
    layer.calls += 1
    layer.constant.fill_(2)
    layer.table = x
    x[:] = 0
    raise RuntimeError("no such kernel")


def test_a_model_that_fails_is_put_back() -> None:
    """The model runs for real to tell its own failure; the values that it wrote are put back."""
    model = Model(fails_after_writing).eval().requires_grad_(False)
    inputs = {"video": torch.ones(1, 30, 4)}
    before = state(model)
    with pytest.raises(fisopt.InputError, match="no such kernel"):
        fisopt.capture(model, inputs, spec=SPEC)
    assert state(model) == before
    assert bool((inputs["video"] == 1).all())


def one_under_two_names(model: nn.Module) -> None:
    first, second, _ = model.layers
    model.layers = nn.ModuleList([first, first, second])


def parts_in_two_blocks(model: nn.Module) -> None:
    model.layers[1].norm1 = model.layers[0].norm1
    model.layers[2].mlp[0].weight = model.layers[0].mlp[0].weight
    model.layers[1].frequencies = model.frequencies


def one_block_that_runs_twice(model: nn.Module) -> None:
    """Not registered twice, called twice."""
    model.layers = nn.ModuleList([model.layers[0]])
    model.__class__ = Looped


class Looped(plain_dit.PlainDiT):
    def forward(self, video: Tensor, text: Tensor, time: Tensor) -> dict[str, Tensor]:
        x, time = self.embed(video), self.time(time[:, None, None])
        angles = torch.arange(video.shape[1])[:, None] * self.frequencies
        for _ in range(3):
            x = self.layers[0](x, text, time, angles)
        return {"video": self.unembed(x)}


SHARED = [one_under_two_names, parts_in_two_blocks, one_block_that_runs_twice]


@pytest.mark.parametrize("share", SHARED, ids=lambda share: share.__name__)
def test_shared_weights_stay_the_models_own(share: Callable[[nn.Module], None]) -> None:
    model = plain_dit.build(Form())
    share(model)
    before = {name: (p, p.clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    inputs = plain_dit.inputs(Form(), *GRID)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of what forward sets
        program = fisopt.capture(model, inputs, spec=SPEC)
    now = dict(model.named_parameters(remove_duplicate=False))
    assert list(now) == list(before)
    assert all(now[name] is p and torch.equal(p, value) for name, (p, value) in before.items())
    torch.testing.assert_close(program(**inputs), model(**inputs), rtol=0, atol=0)
    assert len(program.blocks) == 3, "one call of a block each"
    assert len({str(block.call.target) for block in program.blocks}) == 1
    assert {id(p) for p in program.graph_module.parameters()} <= {id(p) for p, _ in before.values()}


def test_models_are_captured_in_threads_at_once() -> None:
    barrier, wrong = Barrier(3), []

    def work() -> None:
        model = Model(on_the_layer).eval().requires_grad_(False)
        inputs = {"video": torch.randn(1, 30, 4)}
        barrier.wait()
        try:
            program = fisopt.capture(model, inputs, spec=SPEC)
            torch.testing.assert_close(program(**inputs), model(**inputs), rtol=0, atol=0)
        except Exception as error:
            wrong.append(error)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
