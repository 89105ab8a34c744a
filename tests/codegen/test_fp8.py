"""The arithmetic of FP8 linears against e4m3 written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fisopt.codegen.fp8 import product, quantised, simulated
from tests.codegen.e4m3 import linear, rounded


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = torch.randn(24, 64), torch.randn(48, 64), torch.randn(48)
    return (x * torch.logspace(-6, 6, 24)[:, None]).to(dtype), weight.to(dtype), bias.to(dtype)


def multiplied(multiply: object, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (rows, scale), (columns, scales) = quantised(x), quantised(weight)
    result: Tensor = multiply(rows, scale, columns, scales.t(), bias, x.dtype)  # type: ignore[operator]
    return result


def test_rounding_is_that_of_e4m3() -> None:
    x = torch.cat([torch.linspace(-448, 448, 4001), torch.linspace(-0.1, 0.1, 4001)])
    assert torch.equal(x.to(torch.float8_e4m3fn).double(), rounded(x.double()))


@pytest.mark.parametrize("biased", [True, False])
def test_simulated_is_the_plain_formulation(biased: bool) -> None:
    x, weight, bias = operands()
    got = multiplied(simulated, x, weight, bias if biased else None)
    want = linear(x, weight, bias if biased else None)
    error = (got.double() - want).norm(dim=-1) / want.norm(dim=-1)
    assert float(error.max()) <= 1e-5


def test_error_of_a_linear_is_some_percent() -> None:
    x, weight, _ = operands()
    want = x @ weight.t()
    error = (multiplied(simulated, x, weight, None) - want).norm(dim=-1) / want.norm(dim=-1)
    assert 0.005 <= float(error.max()) <= 0.06


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_units_product_is_the_simulated_one(dtype: torch.dtype) -> None:
    x, weight, bias = operands(dtype)
    x = x.clamp(-100, 100)
    try:
        got = multiplied(product, x, weight, bias)
    except RuntimeError as error:
        pytest.skip(f"this CPU's operator takes no row scales: {error}")
    want = multiplied(simulated, x, weight, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_rows_of_zeros_and_rows_that_are_no_numbers() -> None:
    x = torch.randn(4, 16)
    x[0], x[1, 3], x[2, 5] = 0, float("inf"), float("nan")
    rows, scale = quantised(x)
    back = rows.float() * scale
    assert not back[0].any()
    assert back[1].isnan().any()
    assert back[2].isnan().all()
    torch.testing.assert_close(back[3], x[3], rtol=0.07, atol=0.01)
