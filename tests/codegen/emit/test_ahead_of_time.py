"""Emitted kernels compile for NVIDIA GPUs on a machine that has none."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from fisopt import FrameInterleave
from fisopt.codegen.emit.kernel import emit
from tests.codegen.emit.ahead import Request, compile_all
from tests.codegen.emit.regions import emitted
from tests.codegen.emit.test_kernels import qk_operands, qk_per_head, region_of
from tests.conftest import captured
from tests.zoo import zoo

CAPABILITIES = (80, 90, 100)
pytest.importorskip("triton")


def test_qk_norm_rope_compiles(tmp_path: Path) -> None:
    kernel = emit(region_of(qk_per_head, qk_operands((2, 7, 3, 10))))
    types = (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    requests = [
        Request(kernel, config, types, c, wide=c == 90)
        for config, c in product(kernel.configs(), CAPABILITIES)
    ]
    for request, ptx in zip(requests, compile_all(requests, tmp_path), strict=True):
        assert f"sm_{request.capability}" in ptx


@pytest.mark.parametrize("name", zoo())
def test_every_kernel_compiles(name: str, exhaustive: bool, tmp_path: Path) -> None:
    if not exhaustive:
        pytest.skip("compiles every kernel of every family: minutes; --exhaustive")
    found = emitted(FrameInterleave(stride=2)(captured(name)).program).values()
    requests = [
        Request(kernel, config, tuple(n.meta["val"].dtype for n in region.operands), capability)
        for kernel, region in found
        for config, capability in product(kernel.configs(), CAPABILITIES)
    ]
    assert len(compile_all(requests, tmp_path)) == len(requests) > 0
