"""Linears in FP8: which change, what they compute, and weights that change after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import FisoptError, LoweringError, ModelSpec, OptimizedModule, PassManager, Program
from fisopt.codegen import linears, quantised_weights
from fisopt.codegen.choose import Choice
from fisopt.codegen.compile import compile_program
from fisopt.codegen.kernel_options import KernelOptions
from tests.codegen import e4m3
from tests.passes.test_contract import PASSES, fitted

WIDTH = 32
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))


class Layer(nn.Module):
    """A linear over the video, and one over a single row of it."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.time = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.product(x) + functional.linear(time, self.time.weight)

    def product(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.large.weight, self.large.bias)


class Model(nn.Module):
    """Tokens [B, 2 F, 32] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer()])

    def forward(self, video: Tensor, time: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video, time)
        return video


class Oracle(Model):
    """The same, with the linear over the video as e4m3 written out."""

    def forward(self, video: Tensor, time: Tensor) -> Tensor:
        for layer in self.layers:
            product = e4m3.linear(video, layer.large.weight, layer.large.bias)
            video = video + product + layer.time(time)
        return video


def build() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().eval().requires_grad_(False)


def inputs(frames: int = 9) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "video": torch.randn(2, 2 * frames, WIDTH, generator=generator),
        "time": torch.randn(2, 1, WIDTH, generator=generator),
    }


def fast_of(model: nn.Module, linear: Any = "fp8-simulated", **options: Any) -> OptimizedModule:
    options = {"backend": "eager"} | options
    made: OptimizedModule = fisopt.optimize(model, [], spec=SPEC, linear=linear, **options)
    return made


def oracle_of(model: nn.Module, frames: int = 9) -> Tensor:
    oracle = Oracle().eval()
    oracle.load_state_dict(model.state_dict())
    with torch.no_grad():
        result: Tensor = oracle(**inputs(frames))
    return result


def lowering(fast: OptimizedModule) -> str:
    return next(str(c) for c in fast.report.variants[-1].choices if c.what == "linear")


def test_equal_to_the_plain_formulation() -> None:
    model = build()
    fast = fast_of(model)
    got, want = fast(**inputs()), oracle_of(model)
    assert float((got - want).norm() / want.norm()) <= 1e-5
    assert float((got - model(**inputs())).norm() / want.norm()) >= 1e-3
    said = lowering(fast)
    assert "simulated fp8 in 1 of 2" in said
    assert "1 not: 2 rows, others have 36" in said
    assert "leaves out the gain" in said
    assert fast.report.variants[-1].density == 1


def written(weight: nn.Parameter, layer: Layer) -> None:
    with torch.no_grad():
        weight.mul_(-0.5)


def written_through_data(weight: nn.Parameter, layer: Layer) -> None:
    weight.data += 0.1 * torch.randn(WIDTH, WIDTH)


def given_other_data(weight: nn.Parameter, layer: Layer) -> None:
    weight.data = weight.data.flip(0)


def replaced(weight: nn.Parameter, layer: Layer) -> None:
    layer.large.weight = nn.Parameter(weight.detach() * 2, requires_grad=False)


def loaded(weight: nn.Parameter, layer: Layer) -> None:
    layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})


CHANGES = (written, written_through_data, given_other_data, replaced, loaded)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_weights_that_change_are_quantised_anew(
    change: Callable[[nn.Parameter, Layer], None],
) -> None:
    model = build()
    fast = fast_of(model)
    before = fast(**inputs())
    change(model.layers[0].large.weight, model.layers[0])
    got, want = fast(**inputs()), oracle_of(model)
    assert float((got - want).norm() / want.norm()) <= 1e-5
    assert not torch.allclose(got, before, atol=1e-2)


def test_weights_are_quantised_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = quantised_weights.quantised

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        made.append(x.shape[0])
        return real(x)

    monkeypatch.setattr(quantised_weights, "quantised", counted)
    model = build()
    fast = fast_of(model)
    for frames in (9, 9, 10):
        fast(**inputs(frames))
    fast_of(model)(**inputs())
    assert made == [WIDTH]
    fast.clear()
    assert not quantised_weights._KEPT.get(model.layers[0].large.weight)
    fast(**inputs())
    made.pop()
    vars(model)["_hf_hook"] = Still()
    fast(**inputs())
    assert made == [WIDTH, WIDTH], "what a hook moves is not kept"


class Still:
    """A hook that moves nothing, in the place of accelerate's."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output


ALONE = {name: p for name, p in PASSES.items() if not name.endswith("Parallel")}
"""A rank of several has nobody to exchange with here."""


@pytest.mark.parametrize("passes", ALONE.values(), ids=ALONE)
def test_passes_compose(wan: Program, passes: tuple[fisopt.Pass, ...]) -> None:
    program = PassManager(fitted(passes)).run(wan)
    choices: list[Choice] = []
    run = compile_program(program, "eager", None, choices, options=KernelOptions("fp8-simulated"))
    values = [x for _, x in wan.inputs.tensors()]
    held = [n.meta["val"] for n in program.graph.find_nodes(op="placeholder")][len(values) :]
    values += [torch.randn(x.shape, dtype=x.dtype) for x in held]  # what an earlier step has left
    with torch.no_grad():
        got, want = (
            torch.cat([x.flatten() for x in f(*values)]) for f in (run, program.graph_module)
        )
    assert "simulated fp8 in" in str(choices)
    reused = not program.blocks  # by a step that has no linears of its own
    assert ("fp8 in 0 of" in str(choices)) == reused
    error = float((got - want).norm() / want.norm())
    assert error <= 0.1
    assert reused or error >= 1e-4


def test_a_device_without_fp8_is_an_error() -> None:
    with pytest.raises(LoweringError, match=r"sm_89.*on cpu.*fp8-simulated"):
        fast_of(build(), "fp8")(**inputs())


def test_other_words_are_an_error() -> None:
    with pytest.raises(FisoptError, match="linear must be one of"):
        fast_of(build(), "fp16")


def test_training_through_it_is_an_error() -> None:
    model = build().requires_grad_(True)
    with pytest.raises(fisopt.InputError, match="no gradient"):
        fast_of(model)(**inputs())


def test_small_linears_stay_where_speed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears.fp8, "check_device", lambda device: None)
    fast = fast_of(build().to(torch.bfloat16), "fp8")
    call = {name: x.bfloat16() for name, x in inputs().items()}
    fast(**call)
    assert "fp8 in 0 of 2" in lowering(fast)
    assert "32 x 32, too small to gain" in lowering(fast)
