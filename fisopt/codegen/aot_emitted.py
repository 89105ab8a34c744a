"""An emitted kernel as Triton's compiler takes it, with no GPU and no operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from triton.compiler import ASTSource

from fisopt.codegen.emit.kernel import Config, Kernel
from fisopt.codegen.emit.launch import function

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


def source_of(
    kernel: Kernel, config: Config, operands: Sequence[torch.dtype], wide: bool = False
) -> tuple[ASTSource, dict[str, Any]]:
    """The source with types, and the options of a config.

    Args:
        kernel: the kernel.
        config: how it is cut.
        operands: types of its operands, which are dense: their last stride is one.
        wide: whether offsets need 64 bits.
    """
    constants: dict[str, Any] = {
        "WIDE": wide,
        "BLOCK_ROWS": config.block_rows,
        "BLOCK_COLUMNS": config.block_columns,
    }
    signature: dict[str, str] = {}
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
    return ASTSource(function(kernel), signature, constants), {"num_warps": config.num_warps}
