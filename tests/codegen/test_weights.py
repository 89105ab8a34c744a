"""A graph that is handed its weights: equal, and aware of weights that change."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fisopt.codegen.weights import bind_weights


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.inner.weight.sum() + self.scale * self.inner(x), self.inner.bias * 1]


def traced(model: nn.Module) -> fx.GraphModule:
    """A trace that reads the weights by path, some before and some after the inputs."""

    class Flat(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return False

    return fx.GraphModule(model, Flat().trace(model))


def test_results_are_those_of_the_model() -> None:
    model, x = Scaled(), torch.randn(2, 4)
    run = bind_weights(traced(model), model)
    for got, want in zip(run(x), model(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("how", ["loaded", "replaced", "moved"])
def test_changed_weights_are_seen(how: str) -> None:
    model, x = Scaled(), torch.randn(2, 4)
    run = bind_weights(traced(model), model)
    before = run(x)
    other = Scaled()
    inner = model.inner
    if how == "loaded":
        inner.load_state_dict(other.inner.state_dict())
    elif how == "replaced":
        inner.weight, inner.bias = other.inner.weight, other.inner.bias
    else:
        inner.weight.data, inner.bias.data = other.inner.weight.data, other.inner.bias.data
    for got, want, old in zip(run(x), other(x), before, strict=True):
        assert torch.equal(got, want)
        assert not torch.equal(got, old)


def test_no_weight_is_looked_up_by_path() -> None:
    model = Scaled()
    graph = traced(model)
    bind_weights(graph, model)
    assert [n.op for n in graph.graph.nodes if n.op == "get_attr"] == []
