"""Gradients through Programs: the model's own, those of the oracles, or an error with a name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import fisopt
from fisopt import (
    FrameInterleave,
    InputError,
    ModelSpec,
    OptimizedModule,
    Pass,
    PassError,
    PassManager,
    PreconditionError,
    Program,
    Rewriter,
    Rule,
    RulePass,
    Step,
    TileAttention,
    TileMask,
    TokenReduction,
)
from fisopt.codegen import checkpointed
from fisopt.passes.token_reduction import Reduction
from tests import plain_dit
from tests.conftest import GRID, plain_captured
from tests.passes.dense_reduction import Attend, reduced
from tests.passes.dense_reduction import Options as Shares
from tests.passes.loop import Block, Options, blocks_of, interleaved
from tests.passes.tiled import tiled
from tests.plain_dit import FORMS
from tests.zoo import KINDS, Case, zoo

aten = torch.ops.aten


@contextmanager
def trainable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside, every parameter asks for gradients."""
    model.requires_grad_(True)
    try:
        yield list(model.parameters())
    finally:
        model.requires_grad_(False)


def loss_of(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return (output * weights.to(output.dtype)).sum()


def assert_same(got: Sequence[Tensor | None], want: Sequence[Tensor | None]) -> None:
    assert [g is None for g in got] == [w is None for w in want]
    assert any(w is not None and bool(w.any()) for w in want)
    largest = max(float(w.norm()) for w in want if w is not None)
    for g, w in zip(got, want, strict=True):
        if g is not None and w is not None:
            assert float((g - w).norm()) <= 1e-5 * max(float(w.norm()), 1e-3 * largest)


@pytest.mark.parametrize("case", zoo().values(), ids=zoo())
def test_dense_gradients_are_the_models(case: Case, program: Program) -> None:
    inputs = case.inputs(*GRID, batch=2)
    inputs["hidden_states"].requires_grad_()
    with trainable(case.model) as parameters:
        got, want = (
            torch.autograd.grad(
                loss_of(run(**inputs)[0]), [inputs["hidden_states"], *parameters], allow_unused=True
            )
            for run in (program, case.model)
        )
    assert_same(got, want)


def grid_of(case: Case) -> tuple[int, int, int]:
    """Latte's text is as long as a frame of GRID, so that the oracle could not tell them apart."""
    return (5, 2, 4) if case.name == "latte" else GRID


def blocks(case: Case, model: nn.Module) -> list[Block]:
    _, height, width = grid_of(case)
    return blocks_of(case.family.name, model, height * width, 2)


def frames(case: Case, model: nn.Module) -> AbstractContextManager[Any]:
    return interleaved(blocks(case, model), Options(2), GRID[0])


def tiles(case: Case, model: nn.Module) -> AbstractContextManager[Any]:
    held = blocks(case, model)
    return tiled(held, [TileMask(2)] * len(held), GRID[0])


def tokens(case: Case, model: nn.Module, mode: str = "replace") -> AbstractContextManager[Any]:
    front = case.family.name == "cogvideox"
    attend = Attend(Shares(0.5, 0.3, mode=mode), lambda _: grid_of(case), front=front)
    return reduced(model, case.spec.blocks, attend)


Oracle = Callable[[Case, nn.Module], AbstractContextManager[Any]]
every_pass = pytest.mark.parametrize(
    ("step", "oracle"),
    [
        (FrameInterleave(2, blocks=":"), frames),
        (TileAttention(2), tiles),
        (Reduction(**vars(Shares(0.5, 0.3))), tokens),
        (Reduction(**vars(Shares(0.5, 0.3, mode="mean"))), partial(tokens, mode="mean")),
    ],
    ids=["frames", "tiles", "tokens", "means"],
)


@pytest.mark.parametrize("case", [zoo()[name] for name in KINDS], ids=KINDS)
@every_pass
def test_gradients_are_those_through_the_oracle(
    step: Pass, oracle: Oracle, case: Case, program: Program
) -> None:
    """Torch's own, of the plain loops over the model's blocks."""
    inputs, made = case.inputs(*GRID, batch=2), PassManager([step]).run(program)
    inputs["hidden_states"].requires_grad_()
    with trainable(case.model) as parameters:
        asked = [inputs["hidden_states"], *parameters]
        got = torch.autograd.grad(loss_of(made(**inputs)[0]), asked, allow_unused=True)
        with oracle(case, case.model), torch.enable_grad():
            want = torch.autograd.grad(loss_of(case.model(**inputs)[0]), asked, allow_unused=True)
    assert_same(got, want)


IN_DOUBLES = ("cogvideox_2b", "latte")
"""They compute in the dtype that they are given throughout, so differences in doubles are exact."""


@pytest.mark.parametrize("case", [zoo()[name] for name in IN_DOUBLES], ids=IN_DOUBLES)
@every_pass
def test_gradients_are_the_finite_differences_of_the_oracle(
    step: Pass, oracle: Oracle, case: Case, program: Program
) -> None:
    """Of the loss in double precision, along two random directions of all parameters."""
    inputs = case.inputs(*grid_of(case), batch=2)
    made = PassManager([step]).run(program.at(inputs))
    with trainable(case.model) as parameters:
        found = torch.autograd.grad(loss_of(made(**inputs)[0]), parameters, allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]
    model = copy.deepcopy(case.model).double()
    wide = {name: in_double(value) for name, value in inputs.items()}
    torch.set_default_dtype(torch.float64)
    try:
        for _ in range(2):
            along = [torch.randn_like(p) * p.std() for p in model.parameters()]
            losses = [moved(model, partial(oracle, case), along, by, wide) for by in (1e-6, -1e-6)]
            want = (losses[0] - losses[1]) / 2e-6
            got = sum(float((g * a).sum()) for g, a in zip(gradients, along, strict=True))
            assert got == pytest.approx(want, rel=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


def in_double(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


def moved(
    model: nn.Module, oracle: Any, along: list[Tensor], by: float, inputs: dict[str, Any]
) -> float:
    """The loss with the parameters moved along a direction."""
    apart = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, direction in zip(apart.parameters(), along, strict=True):
            parameter += by * direction
        with oracle(apart):
            return float(loss_of(apart(**inputs)[0]))


FORM = FORMS["fused"]
INPUTS = plain_dit.inputs(FORM, 7, 2, 3, batch=2)
SPEC = ModelSpec(blocks=("layers.*",), grid=(7, 2, 3))


@pytest.fixture
def once() -> Iterator[None]:
    """The plain model asks for no gradient after a test."""
    yield
    plain_captured(FORM)[0].requires_grad_(False)


def optimized(passes: Sequence[Pass], backend: Any = "eager") -> OptimizedModule:
    program = plain_captured(FORM)[1]
    result: OptimizedModule = fisopt.optimize(program, passes, INPUTS, backend=backend)
    return result


def gradients_of(run: Callable[..., Any], model: nn.Module) -> list[Tensor | None]:
    loss = loss_of(run(**INPUTS)["video"])
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


PASSES = {
    "dense": [],
    "frames": [FrameInterleave(2)],
    "tiles": [TileAttention(1)],
    "tokens": [TokenReduction(0.5, 0.3)],
    "frames and tiles": [FrameInterleave(2, blocks="1:"), TileAttention(1)],
}


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("name", PASSES)
def test_compiled_gradients_are_those_of_the_graph(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: real(f, backend="aot_eager", **kw))
    compiled, eager = optimized(PASSES[name], "inductor"), optimized(PASSES[name])
    eager.requires_grad_(True)
    assert_same(gradients_of(compiled, compiled), gradients_of(eager, eager))


@pytest.mark.usefixtures("once")
def test_checkpointed_blocks_run_again_for_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As diffusers' ``enable_gradient_checkpointing`` asks for it."""
    runs: list[Any] = []
    real = checkpointed.checkpoint

    def counted(stage: Callable[..., Any], *values: Any, **options: Any) -> Any:
        def run(*given: Any) -> Any:
            runs.append(stage)
            return stage(*given)

        return real(run, *values, **options)

    monkeypatch.setattr(checkpointed, "checkpoint", counted)
    plain = optimized([FrameInterleave(2)])
    plain.requires_grad_(True)
    want = gradients_of(plain, plain)
    assert not runs
    model = plain_captured(FORM)[0]
    monkeypatch.setattr(model, "gradient_checkpointing", True, raising=False)
    sparing = optimized([FrameInterleave(2)])
    assert_same(gradients_of(sparing, sparing), want)
    assert len(runs) == 2 * len(model.layers)
    with torch.no_grad():
        sparing(**INPUTS)
    assert len(runs) == 2 * len(model.layers)


@pytest.mark.usefixtures("once")
def test_the_gradient_is_compiled_before_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(what: str) -> Callable[..., Any]:
        return lambda graph, _: seen.append(what) or make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=noted("forward"), bw_compiler=noted("gradient"))
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: real(f, backend=backend, **kw))
    fast = optimized(PASSES["frames"], "inductor")
    fast.requires_grad_(True)
    loss = loss_of(fast(**INPUTS)["video"])
    before = list(seen)
    torch.autograd.grad(loss, list(fast.parameters()), allow_unused=True)
    assert set(before) == {"forward", "gradient"}
    assert seen == before


@pytest.mark.usefixtures("once")
def test_inductor_compiles_the_gradient() -> None:
    compiled, eager = (optimized(PASSES["tiles"], b) for b in ("inductor", "eager"))
    eager.requires_grad_(True)
    assert_same(gradients_of(compiled, compiled), gradients_of(eager, eager))


@pytest.mark.usefixtures("once")
def test_no_graph_where_nothing_asks_for_one() -> None:
    fast = optimized([FrameInterleave(2)])
    assert not fast(**INPUTS)["video"].requires_grad
    fast.requires_grad_(True)
    assert fast(**INPUTS)["video"].requires_grad
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert not fast(**INPUTS)["video"].requires_grad
    fast.requires_grad_(False)
    video = INPUTS["video"].clone().requires_grad_()
    fast(**{**INPUTS, "video": video})["video"].sum().backward()
    assert bool(video.grad is not None and video.grad.any())
    assert all(p.grad is None for p in fast.original.parameters())


@pytest.mark.usefixtures("once")
def test_a_match_of_an_earlier_step_is_a_constant() -> None:
    """Two steps on equal inputs: the second reuses the match, so its gradients are the first's."""
    fast = optimized([TokenReduction(0.5, 0.3, cache_steps=2, redraw=False)])
    fast.requires_grad_(True)

    def gradients(step: int) -> list[Tensor | None]:
        with fast.cache_context("cond", step_index=step, num_inference_steps=2):
            return gradients_of(fast, fast)

    first, second = gradients(0), gradients(1)
    assert fast.step == Step(1, 2)
    assert_same(second, first)


class Refusing(RulePass):
    differentiable: ClassVar[bool] = False


def anywhere(match: Any) -> bool:
    return True


def gelu(by: Any) -> tuple[Rule, ...]:
    return (Rule("gelu", lambda x: aten.gelu.default(x), by, anywhere),)


@fisopt.operator("test::step_function", tags=(torch.Tag.pointwise,), gradient="missing")
def step_function(x: Tensor) -> Tensor:
    return x.sign()


@pytest.mark.usefixtures("once")
def test_a_pass_without_a_gradient_is_named() -> None:
    fast = optimized([Refusing(gelu(lambda x: aten.relu.default(x)))])
    fast(**INPUTS)
    fast.requires_grad_(True)
    with pytest.raises(PreconditionError, match=r"\[Refusing\]: it has no gradient.*no_grad"):
        fast(**INPUTS)
    with torch.no_grad():
        fast(**INPUTS)


@pytest.mark.usefixtures("once")
def test_an_operator_without_a_gradient_is_named() -> None:
    fast = optimized([RulePass(gelu(lambda x: step_function(x)))])
    fast.requires_grad_(True)
    message = r"\[RulePass\] at step_function.*: test\.step_function\.default has no gradient"
    with pytest.raises(PassError, match=message):
        fast(**INPUTS)
    with pytest.raises(PassError, match=message):
        fast.program(INPUTS)(**INPUTS)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * torch.sigmoid(x)


class Switched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.sigmoid()
        return x * scale


def with_function(function: nn.Module) -> nn.Module:
    model = copy.deepcopy(plain_captured(FORM)[0])
    for layer in model.layers:
        layer.mlp[1] = function
    return model.requires_grad_(True)


def test_a_detached_value_stays_a_constant() -> None:
    model = with_function(Detached())
    program = fisopt.capture(model, INPUTS, spec=SPEC)
    assert_same(gradients_of(program, model), gradients_of(model, model))
    sparse = PassManager([FrameInterleave(2)]).run(program)
    assert sparse.blocks[1].body is not program.blocks[1].body


def test_a_model_that_turns_gradients_off_is_refused() -> None:
    model = with_function(Switched())
    fast = fisopt.optimize(model, [], INPUTS, SPEC, "eager")
    with pytest.raises(InputError, match=r"PlainDiT switches gradients off or on .*\.detach\(\)"):
        fast(**INPUTS)
    with torch.no_grad():
        torch.testing.assert_close(fast(**INPUTS), model(**INPUTS))


class Caching(nn.Module):
    """Adds what it has seen to a cache that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, video: Tensor, cache: Tensor) -> Tensor:
        for layer in self.layers:
            video = video + layer(video)
        cache.copy_(video.mean(1))
        return video


def test_gradients_flow_through_what_is_written() -> None:
    torch.manual_seed(0)
    model = Caching().eval()
    inputs = {"video": INPUTS["video"], "cache": torch.zeros(2, 6)}
    program = fisopt.capture(model, inputs, spec=SPEC)

    def gradients(run: Callable[..., Any]) -> list[Tensor]:
        cache = torch.zeros(2, 6)
        run(video=INPUTS["video"], cache=cache)
        return list(torch.autograd.grad(cache.square().sum(), list(model.parameters())))

    assert_same(gradients(program), gradients(model))


def test_an_edit_keeps_the_rewriters_promise() -> None:
    """A rewriter's own values never record a graph, whatever asks for gradients."""
    model = with_function(nn.GELU())
    program = fisopt.capture(model, INPUTS, spec=SPEC)
    rewriter = Rewriter(program.copy(), "test")
    source = next(n for n in rewriter.graph.nodes if n.op == "placeholder")
    with rewriter.after(source):
        node = rewriter.call(aten.relu.default, source)
    assert not node.meta["val"].requires_grad
