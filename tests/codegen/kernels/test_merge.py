"""The kernel that merges results against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fisopt.codegen.kernels.merge import merge


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_kernel(count: int, masked: bool, dtype: torch.dtype) -> None:
    """Queries are one more than two blocks, features no power of two."""
    parts = [torch.randn(2, 65, 3, 24, dtype=dtype).transpose(1, 2) for _ in range(count)]
    sums = [torch.randn(2, 70, 3).permute(0, 2, 1)[..., 2:67] * 5 for _ in range(count)]
    for one in sums:
        one[..., 7] = -32768.0
    got, want = torch.empty_like(parts[0]), torch.empty_like(parts[0])
    merge(got, parts, sums, masked, by_kernel=True)
    merge(want, parts, sums, masked, by_kernel=False)
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6)
    assert bool((got[..., 7, :] == 0).all()) == masked


def test_parts_that_do_not_count_do_not_show() -> None:
    parts = [torch.randn(1, 1, 4, 8), torch.full((1, 1, 4, 8), 1e30)]
    sums = [torch.zeros(1, 1, 4), torch.full((1, 1, 4), -32760.0)]
    for by_kernel in (False, True):
        got = torch.empty_like(parts[0])
        merge(got, parts, sums, True, by_kernel)
        assert torch.equal(got, parts[0])


AHEAD = """
import torch
from fisopt.codegen.aot import compile_ahead
from fisopt.codegen.kernels.merge import prepare

out = torch.empty(1, 64, 4, 128, dtype=torch.bfloat16).transpose(1, 2)
made = compile_ahead(prepare(out, [out] * 8, [torch.empty(1, 4, 64)] * 8, True), 90)
assert (made.spilled, made.registers <= 128) == (0, True), made
"""


def test_compiles_without_spills() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", AHEAD], env=environment, check=True)
