"""The kernels of every family: which there are, and that each computes what eager does."""

from __future__ import annotations

import pytest
import torch

from fisopt import FrameInterleave, Program
from tests.codegen.emit.interpreter import Interpreter
from tests.codegen.emit.regions import as_dtype, emitted, operands, reference
from tests.zoo import Case, zoo

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("case", zoo().values(), ids=zoo())
def test_kernels_equal_eager(case: Case, program: Program, triton_interpreter: Interpreter) -> None:
    sparse = FrameInterleave(stride=2, first_block=0)(program).program
    found = emitted(sparse)
    assert found
    for kernel, region in found.values():
        for dtype, tolerance in TOLERANCES.items():
            values = operands(kernel, region, dtype)
            got = triton_interpreter.launch(as_dtype(kernel, dtype), values)
            for x, y in zip(got, reference(region, values), strict=True):
                error = (x.float() - y.float()).abs().max() / y.float().abs().max().clamp(min=1)
                assert error <= tolerance, f"{kernel.summary}\n{kernel.source}"
