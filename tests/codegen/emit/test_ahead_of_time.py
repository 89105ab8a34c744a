"""Emitted kernels compile for NVIDIA GPUs on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fisopt import FrameInterleave
from fisopt.codegen.emit import cache
from fisopt.codegen.emit.kernel import Kernel, emit
from fisopt.codegen.emit.launch import function
from tests.codegen.emit.regions import emitted
from tests.codegen.emit.test_kernels import qk_operands, qk_per_head, region_of
from tests.conftest import captured
from tests.zoo import zoo

CAPABILITIES = (80, 90, 100)
pytest.importorskip("triton")
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


def compiled(kernel: Kernel, operands: list[torch.dtype], capability: int, wide: bool) -> Any:
    """Compile a kernel for dense operands of some types."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    config = kernel.config()
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {
        "WIDE": wide,
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_COLUMNS": config.block_columns,
    }
    for i, dtype in enumerate(operands):
        signature[f"x{i}_ptr"] = TYPES[dtype]
        for operand, d in kernel.strides:
            if operand == i:
                name = f"x{i}_s{d}"
                signature[name] = "i64" if wide else "i32"
                if d == len(kernel.operands[i]) - 1:  # what Triton makes of a stride of one
                    signature[name], constants[name] = "constexpr", 1
    for i, (_, dtype) in enumerate(kernel.results):
        signature[f"y{i}_ptr"] = TYPES[dtype]
    signature |= dict.fromkeys(("WIDE", "BLOCK_ROWS", "BLOCK_COLUMNS"), "constexpr")
    source = ASTSource(function(kernel), signature, constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": config.num_warps})


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_qk_norm_rope_compiles(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    region = region_of(qk_per_head, qk_operands((2, 7, 3, 10)))
    kernel = emit(region)
    types = [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    binary = compiled(kernel, types, capability, wide=capability == 90)
    assert binary.asm["cubin"]
    assert f"sm_{capability}" in binary.asm["ptx"]


@pytest.mark.parametrize("name", zoo())
def test_every_kernel_compiles(
    name: str, exhaustive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exhaustive:
        pytest.skip("compiles every kernel of every family: minutes; --exhaustive")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    for kernel, region in emitted(FrameInterleave(stride=2)(captured(name)).program).values():
        types = [node.meta["val"].dtype for node in region.operands]
        for capability in CAPABILITIES:
            assert compiled(kernel, types, capability, wide=False).asm["cubin"]
