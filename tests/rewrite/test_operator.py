"""Operators that are declared: known to every part, differentiable, refused where they disagree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fisopt
from fisopt import (
    FisoptError,
    FrameInterleave,
    LoweringError,
    ModelSpec,
    OptionError,
    PassError,
    PassManager,
    Program,
    Rewriter,
    Rule,
    RulePass,
    axes_of,
    format_graph,
    operator,
    program_cost,
)
from fisopt.codegen.flatten import flatten
from fisopt.codegen.lower import lower
from fisopt.rewrite.relations.table import pointwise
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS

aten = torch.ops.aten


@operator("test::soft_sign", tags=(torch.Tag.pointwise,), flops=lambda x, _: 3.0 * x.numel())
def soft_sign(x: Tensor, width: float = 1.0) -> Tensor:
    """x [...]."""
    return x / (x.abs() + width)


@operator("test::searched", relation=pointwise, opaque=True, counts_as="matching")
def searched(x: Tensor) -> Tensor:
    """x [...]."""
    return x.sin()


@operator("test::halves", axes=lambda node: (None,) * node.meta["val"].ndim, selects="x")
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., N, D]; every second row, and its index."""
    index = torch.arange(0, x.shape[-2], 2, device=x.device)
    return x.index_select(-2, index) ** 2, index


def using(function: Callable[[Any], Any], where: Any = lambda match: True) -> RulePass:
    """A pass that puts a function in the place of every GELU."""
    return RulePass((Rule("gelu", lambda x: aten.gelu.default(x), function, where),))


@pytest.fixture
def program() -> Program:
    return plain_captured(FORMS["fused"])[1]


INPUTS = plain_dit.inputs(FORMS["fused"], 5, 2, 3, batch=2)


def own(function: nn.Module) -> nn.Module:
    """The model itself with another function for GELU."""
    model = copy.deepcopy(plain_captured(FORMS["fused"])[0])
    for layer in model.layers:
        layer.mlp[1] = function
    return model


class Softsign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs() + 0.5)


def test_a_pass_inserts_it_and_the_values_are_the_models_own(program: Program) -> None:
    made = PassManager([using(lambda x: soft_sign(x, width=0.5))]).run(program)
    assert "= test::soft_sign(%" in format_graph(made)
    assert made.graph is not program.graph
    torch.testing.assert_close(made(**INPUTS), own(Softsign())(**INPUTS))
    (node,) = [n for n in made.blocks[0].body.graph.nodes if n.target is soft_sign.target]
    assert node.args[1:] == (0.5,)
    assert node.kwargs == {}
    assert axes_of(node) == axes_of(node.args[0])


class Declared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return soft_sign.target(x, width=0.5)


def test_met_in_a_model_it_runs_on_the_frames_that_are_needed() -> None:
    spec = ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))
    made, plain = (fisopt.capture(own(f), INPUTS, spec=spec) for f in (Declared(), Softsign()))
    fisopt.verify(made)
    torch.testing.assert_close(made(**INPUTS), own(Softsign())(**INPUTS))
    got, want = (PassManager([FrameInterleave(2)]).run(p) for p in (made, plain))
    torch.testing.assert_close(got(**INPUTS), want(**INPUTS))
    sparse = got.blocks[1].body.graph
    (node,) = [n for n in sparse.nodes if n.target is soft_sign.target]
    assert node.meta["val"].shape[1] == 3 * 6


def test_cost_counts_what_it_says(program: Program) -> None:
    before = program_cost(program).flops
    after = program_cost(PassManager([using(lambda x: soft_sign(x))]).run(program)).flops
    elements = 3 * 2 * 30 * 64
    assert after["other"] == before["other"] + (3 - 1) * elements


@pytest.mark.parametrize(("function", "stays"), [(soft_sign, False), (searched, True)])
def test_lowering_inlines_it_or_keeps_it_a_call(
    program: Program, function: Any, stays: bool
) -> None:
    made = PassManager([using(lambda x: function(x))]).run(program)
    graphs = [m.graph for m in lower(made).children() if isinstance(m, fx.GraphModule)]
    assert stays == any(n.target is function.target for g in graphs for n in g.nodes)
    want = made(**INPUTS)["video"]
    torch.testing.assert_close(lower(made)(*made.values(INPUTS))[0], want)
    flat = flatten(made)
    assert not any("test" in str(n.target) for n in flat.graph.nodes), "torch alone runs it"
    torch.testing.assert_close(flat(*made.values(INPUTS))[0], want)


def test_a_reference_that_cannot_be_traced_is_named(program: Program) -> None:
    @operator(
        "test::by_value",
        tags=(torch.Tag.pointwise,),
        fake=torch.empty_like,
        example=(torch.ones(2),),
    )
    def by_value(x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x.clone()

    made = PassManager([using(lambda x: by_value(x))]).run(program)
    with pytest.raises(LoweringError, match=r"test\.by_value.*cannot be traced.*opaque"):
        lower(made)


def test_one_of_torch(program: Program) -> None:
    target = aten.renorm.default
    with pytest.raises(PassError, match="no relation, so the frame axes"):
        using(lambda x: target(x, 2, 2, 1.0))(program)
    declared = operator(target, axes=lambda node: axes_of(node.args[0]), counts_as="matching")
    made = PassManager([using(lambda x: declared(x, 2, 2, 1.0))]).run(program)
    torch.testing.assert_close(lower(made)(*made.values(INPUTS))[0], made(**INPUTS)["video"])
    with pytest.raises(OptionError, match="it has the kernels that torch has"):
        declared.kernel("cpu")


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_the_reference(compiled: bool) -> None:
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        kept, index = halves(soft_sign(x, 2.0))
        return (kept * searched(x.index_select(-2, index))).sum()

    def plain(x: Tensor) -> Tensor:
        kept, index = halves.reference(soft_sign.reference(x, 2.0))
        return (kept * searched.reference(x.index_select(-2, index))).sum()

    run = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    (got,), (want,) = (torch.autograd.grad(f(x), x) for f in (run, plain))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.library.opcheck(halves.target, (x,))


def test_results_without_a_gradient() -> None:
    @operator("test::order", gradient="zero")
    def order(x: Tensor) -> Tensor:
        return x.argsort(-1).to(x.dtype)

    @operator("test::unknown", gradient="missing")
    def unknown(x: Tensor) -> Tensor:
        return x * 2

    x = torch.randn(5, requires_grad=True)
    assert not order(x).requires_grad
    with pytest.raises(RuntimeError, match="no autograd formula"):
        unknown(x).sum().backward()


def test_a_kernel_is_attached() -> None:
    @operator("test::kerneled")
    def kerneled(x: Tensor) -> Tensor:
        return x + 1

    @kerneled.kernel("cpu")
    def _(x: Tensor) -> Tensor:
        return x + 3

    assert kerneled(torch.zeros(1)).tolist() == [3.0]
    assert kerneled.reference(torch.zeros(1)).tolist() == [1.0]


def doubled(x: Tensor) -> Tensor:
    return x * 2


def untyped(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return x


def listed(x: list[Tensor]) -> Tensor:
    return torch.cat(x)


ONES = (torch.ones(4, 2),)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: operator("test::soft_sign")(doubled), "test::soft_sign is declared already"),
        (
            lambda: operator(aten.erfinv.default) and operator(aten.erfinv.default),
            "declared already",
        ),
        (lambda: operator("test::none")(None), "test::none: got None for its reference"),
        (lambda: operator("test::none")(untyped), "test::none: .*must have a type annotation"),
        (lambda: operator("none")(doubled), "'none': wanted a name such as"),
        (lambda: operator("test::a", fake=doubled)(doubled), "fake= wants example="),
        (
            lambda: operator("test::a", fake=lambda x: x[:1].clone(), example=ONES)(doubled),
            r"test::a: .*its fake gives \[\(\(1, 2\).*its reference \[\(\(4, 2\)",
        ),
        (
            lambda: operator("test::a", fake=lambda x: x.t().contiguous().t(), example=ONES)(
                doubled
            ),
            r"test::a: .*its fake gives .*\(1, 4\)",
        ),
        (
            lambda: operator("test::a", implementation=torch.square, example=ONES)(doubled),
            "result 0 of its reference and of its implementation differ by 1 on",
        ),
        (
            lambda: operator("test::a", example=ONES)(lambda x: x[:2]),
            "its reference returns a view of an operand; clone it",
        ),
        (lambda: operator("test::a", example=(3,))(doubled), r"returns \[6\]; wanted tensors"),
        (lambda: operator("test::b", moves=("y",))(doubled), r"test::b.*no operand 'y'.*\['x'\]"),
        (lambda: operator("test::b")(listed), "test::b takes lists of tensors"),
        (lambda: operator("test::c", counts_as="quick")(doubled), "counts_as is one of"),
        (lambda: operator("test::c", speed=3)(doubled), r"no option \['speed'\]"),
        (lambda: operator(doubled), "wanted a new name or an operator of torch"),
    ],
)
def test_refused(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"(?s){message}") as caught:
        declare()
    assert isinstance(caught.value, FisoptError)


def test_without_a_kernel_of_torch() -> None:
    torch.library.define("test::only_a_schema", "(Tensor x) -> Tensor")
    with pytest.raises(OptionError, match=r"test\.only_a_schema.* has no reference"):
        operator(torch.ops.test.only_a_schema.default)


def test_the_rewriter_takes_names_and_defaults(program: Program) -> None:
    rewriter = Rewriter(program.copy(), "test")
    source = next(n for n in rewriter.graph.nodes if n.op == "placeholder")
    with rewriter.after(source):
        node = rewriter.call(soft_sign, x=source)
    assert node.args == (source, 1.0)
