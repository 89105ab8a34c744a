"""What a device reaches: a large copy, a large matrix product, and each dense attention.

Attention and product are those of Wan2.2-A14B at 720p and 81 frames.  Rows are kept in
``ceilings.json``; other benchmarks measure what is missing, and predict from them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from device import Rows, free_memory, milliseconds, said
from roofline import Ceilings
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KEY = ("what",)
BACKENDS = {
    "attention, cudnn": SDPBackend.CUDNN_ATTENTION,
    "attention, flash": SDPBackend.FLASH_ATTENTION,
    "attention, efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_SIZES = {"cuda": (75600, 5120, 13824, 40, 2**30), "cpu": (256, 64, 128, 2, 2**20)}
"""Tokens, width, inner width, heads, elements that are copied."""


def measured(rows: Rows, device: torch.device) -> Ceilings:
    """Measure what has no row yet, and return the best of each kind."""
    tokens, width, inner, heads, elements = _SIZES[device.type]
    made: dict[str, Callable[[], tuple[Callable[[], Any], str, float]]] = {
        "copy": lambda: _copy(elements, device),
        "linear": lambda: _linear(tokens, width, inner, device),
        **{name: partial(_attention, b, tokens, heads, device) for name, b in BACKENDS.items()},
    }
    for row in rows.missing([{"what": name} for name in made]):
        try:
            with torch.no_grad():
                call, unit, amount = made[row["what"]]()
                ms = milliseconds(call)
            row |= {"ms": round(ms, 4), unit: round(amount / ms * 1e3, 4)}
        except Exception as error:
            row["failed"] = said(error)
        rows.add(row)
        call = None
        free_memory()
    return read(rows)


def read(rows: Rows) -> Ceilings:
    """The best of each kind, in FLOPs and bytes a second."""
    best = {row["what"]: row for row in rows.rows if "failed" not in row}
    attention = max(row["tflops"] for name, row in best.items() if name in BACKENDS)
    copy = 1e9 * best["copy"]["gb_s"]
    return Ceilings(1e12 * best["linear"]["tflops"], 1e12 * attention, copy)


def fastest(rows: Rows) -> str:
    """The name of the fastest dense attention."""
    held = [row for row in rows.rows if row["what"] in BACKENDS and "failed" not in row]
    return str(max(held, key=lambda row: row["tflops"])["what"])


def preferred(name: str) -> AbstractContextManager[None]:
    """Dense attention by this backend where it takes the operands, else by another."""
    first = BACKENDS[name]
    others = [b for b in (*BACKENDS.values(), SDPBackend.MATH) if b is not first]
    return sdpa_kernel([first, *others], set_priority=True)  # type: ignore[no-any-return]


def _copy(elements: int, device: torch.device) -> tuple[Callable[[], Any], str, float]:
    source = torch.randn(elements, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), "gb_s", 4e-9 * elements


def _linear(
    tokens: int, width: int, inner: int, device: torch.device
) -> tuple[Callable[[], Any], str, float]:
    x = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    weight = torch.randn(inner, width, device=device, dtype=torch.bfloat16)
    flops = 2e-12 * tokens * width * inner
    return lambda: torch.nn.functional.linear(x, weight), "tflops", flops


def _attention(
    backend: SDPBackend, tokens: int, heads: int, device: torch.device
) -> tuple[Callable[[], Any], str, float]:
    size = (3, 1, tokens, heads, 128)
    query, key, value = torch.randn(size, device=device, dtype=torch.bfloat16).transpose(2, 3)

    def call() -> Tensor:
        kinds = (
            [backend] if device.type == "cuda" else [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
        )
        with sdpa_kernel(kinds):
            return scaled_dot_product_attention(query, key, value)

    return call, "tflops", 4e-12 * tokens**2 * heads * 128
