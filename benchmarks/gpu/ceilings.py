"""What a device reaches: a large copy, a large matrix product, and each dense attention.

Attention and product are of a model's own sizes: on a GPU those of Wan2.2-A14B at 720p and 81
frames.  Rows are kept in ``ceilings.json``; other benchmarks measure what is missing, and predict
from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from device import Rows, folder, free_memory, milliseconds, said
from roofline import Ceilings
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fisopt.codegen.fp8 import product, quantised

KEY = ("what",)
BACKENDS = {
    "attention, cudnn": SDPBackend.CUDNN_ATTENTION,
    "attention, flash": SDPBackend.FLASH_ATTENTION,
    "attention, efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Sizes:
    """What is timed: a model's own sizes, and a copy that no cache holds."""

    tokens: int
    width: int
    inner: int
    heads: int
    head_width: int
    copied: int


A14B = Sizes(75600, 5120, 13824, 40, 128, copied=2**30)
TINY = Sizes(256, 64, 128, 2, 24, copied=2**20)


def measured(
    rows: Rows, device: torch.device, sizes: Sizes, dtype: torch.dtype = torch.bfloat16
) -> Ceilings:
    """Measure what has no row yet, and return the best of each kind."""
    made: dict[str, Callable[[], tuple[Callable[[], Any], str, float]]] = {
        "copy": lambda: _copy(sizes, device, dtype),
        "linear": lambda: _linear(sizes, device, dtype),
        **({"linear, fp8": lambda: _fp8(sizes, device)} if device.type == "cuda" else {}),
        **{name: partial(_attention, b, sizes, device, dtype) for name, b in BACKENDS.items()},
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


def of_device(device: torch.device, out: Path, minutes: float, again: bool = False) -> Rows:
    """The rows of a device, all of them there."""
    rows = Rows(out / "ceilings.json", KEY, minutes, again)
    measured(rows, device, TINY if device.type == "cpu" else A14B)
    return rows


def read(rows: Rows) -> Ceilings:
    """The best of each kind, in FLOPs and bytes a second."""
    best = {row["what"]: row for row in rows.rows if "failed" not in row}
    attention = max(row["tflops"] for name, row in best.items() if name in BACKENDS)
    copy = 1e9 * best["copy"]["gb_s"]
    fp8 = 1e12 * best["linear, fp8"]["tflops"] if "linear, fp8" in best else None
    return Ceilings(1e12 * best["linear"]["tflops"], 1e12 * attention, copy, fp8)


def fastest(rows: Rows) -> str:
    """The name of the fastest dense attention."""
    held = [row for row in rows.rows if row["what"] in BACKENDS and "failed" not in row]
    return str(max(held, key=lambda row: row["tflops"])["what"])


def preferred(name: str) -> AbstractContextManager[None]:
    """Dense attention by this backend where it takes the operands, else by another."""
    first = BACKENDS[name]
    others = [b for b in (*BACKENDS.values(), SDPBackend.MATH) if b is not first]
    return sdpa_kernel([first, *others], set_priority=True)  # type: ignore[no-any-return]


def _copy(
    sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], Any], str, float]:
    source = torch.randn(sizes.copied, device=device, dtype=dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), "gb_s", 2e-9 * source.nbytes


def _linear(
    sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], Any], str, float]:
    x = torch.randn(sizes.tokens, sizes.width, device=device, dtype=dtype)
    weight = torch.randn(sizes.inner, sizes.width, device=device, dtype=dtype)
    flops = 2e-12 * sizes.tokens * sizes.width * sizes.inner
    return lambda: torch.nn.functional.linear(x, weight), "tflops", flops


def _fp8(sizes: Sizes, device: torch.device) -> tuple[Callable[[], Any], str, float]:
    """The product alone, of rows that are rounded already."""
    x, weight = (
        quantised(torch.randn(rows, sizes.width, device=device))
        for rows in (sizes.tokens, sizes.inner)
    )
    flops = 2e-12 * sizes.tokens * sizes.width * sizes.inner
    scale = weight[1].t().contiguous()
    return lambda: product(*x, weight[0], scale, None, torch.bfloat16), "tflops", flops


def _attention(
    backend: SDPBackend, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], Any], str, float]:
    if device.type == "cpu":
        backend = SDPBackend.FLASH_ATTENTION
    shape = (3, 1, sizes.tokens, sizes.heads, sizes.head_width)
    query, key, value = torch.randn(shape, device=device, dtype=dtype).transpose(2, 3)

    def call() -> Tensor:
        with sdpa_kernel([backend]):
            return scaled_dot_product_attention(query, key, value)

    pairs = sizes.tokens**2 * sizes.heads
    return call, "tflops", 4e-12 * pairs * sizes.head_width


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, default=folder())
    options = parser.parse_args()
    print(of_device(torch.device(options.device), options.out, options.minutes).rows)
