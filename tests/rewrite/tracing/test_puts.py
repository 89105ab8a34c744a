"""What forward sets in the dicts and lists of its arguments is set there after every run."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, InputError, ModelSpec
from fisopt.errors import ExportError
from fisopt.rewrite.tracing.inputs import Inputs

SPEC = ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))


class Layered(nn.Module):
    """Two layers of tokens; what is done to a container beside them."""

    def __init__(self, beside: Callable[[Tensor, Any], None]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in "ab")
        self.beside = beside

    def forward(self, video: Tensor, memory: Any) -> Tensor:
        for layer in self.layers:
            video = video + layer(video)
        self.beside(video, memory)
        return video


def replaces(video: Tensor, memory: Any) -> None:
    memory["k"] = torch.cat([memory["k"], video.mean(1, keepdim=True)], 1)
    memory["count"] += 1


def fills(video: Tensor, memory: Any) -> None:
    memory["held"] = {"pair": (video.mean((0, 1)), 3)} if memory["held"] is None else None


def appends(video: Tensor, memory: Any) -> None:
    memory["list"].append(video.mean())
    memory["new"] = [True, video.amax((0, 1))]


def exchanges_a_tuple(video: Tensor, memory: Any) -> None:
    memory[0] = (memory[0][0] + video.mean(), memory[0][1])
    memory[1].add_(1)


def memories() -> dict[Callable[[Tensor, Any], None], Any]:
    return {
        replaces: {"k": torch.randn(2, 3, 4), "count": 2},
        fills: {"held": None},
        appends: {"list": [torch.ones(2)]},
        exchanges_a_tuple: [(torch.ones(3), 7), torch.zeros(2)],
    }


def of(beside: Callable[[Tensor, Any], None]) -> tuple[Layered, dict[str, Any]]:
    model = Layered(beside).eval().requires_grad_(False)
    return model, {"video": torch.randn(2, 30, 4), "memory": memories()[beside]}


@pytest.mark.parametrize("beside", memories(), ids=lambda f: f.__name__)
def test_it_is_as_the_model_leaves_it(beside: Any) -> None:
    model, call = of(beside)
    before = deepcopy(call)
    program = fisopt.capture(model, call, spec=SPEC)
    torch.testing.assert_close(call, before, atol=0, rtol=0)  # capturing leaves everything alone
    fast = fisopt.optimize(model, [], example_inputs=call, spec=SPEC, backend="eager")
    for run in (program, fast):
        got, want = deepcopy(call), deepcopy(call)
        holder = got["memory"]
        run(**got)
        model(**want)
        assert got["memory"] is holder
        torch.testing.assert_close(got, want)


def test_an_optimised_module_goes_on_with_what_is_there(tmp_path: Path) -> None:
    model, call = of(replaces)
    fast = fisopt.optimize(model, [], example_inputs=call, spec=SPEC, backend="eager")
    got, want = deepcopy(call), deepcopy(call)
    for _ in range(3):
        torch.testing.assert_close(fast(**got), model(**want))
    assert got["memory"]["count"] == 5
    torch.testing.assert_close(got, want)
    with pytest.raises(ExportError, match=r"Layered changes 'memory_k', 'memory_count'"):
        fisopt.export(fast, tmp_path / "model.pt2")


def test_what_is_taken_out_is_an_error() -> None:
    def pops(video: Tensor, memory: Any) -> None:
        memory.pop("held")

    model = Layered(pops).eval().requires_grad_(False)
    call = {"video": torch.randn(2, 30, 4), "memory": {"held": torch.ones(2)}}
    with pytest.raises(CaptureError, match=r"Layered takes 'held' out of argument 'memory'"):
        fisopt.capture(model, call, spec=SPEC)


def test_inputs_without_containers_are_an_error() -> None:
    model, call = of(replaces)
    program = fisopt.capture(model, call, spec=SPEC)
    inputs = Inputs.of(call)
    returned = program.split(program.graph_module(*(x for _, x in inputs.tensors())))
    with pytest.raises(InputError, match="puts 'memory_k' into a container"):
        program.write_back(inputs.replaced(inputs.leaves), returned)
