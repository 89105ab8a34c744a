"""Tile choices of tile_attention: all that are compiled, and the one without a measurement."""

from __future__ import annotations

from typing import Literal

import triton

from fisopt.codegen.kernels.launching import padded

Masked = Literal["no", "alike", "each"]
"""No mask, one row of it for all queries, or one for each."""


def _config(
    block_m: int, block_n: int, warps: int, stages: int, descriptors: bool = True
) -> triton.Config:
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "DESCRIPTORS": descriptors}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


CONFIGS = [
    _config(128, 128, 8, 2),
    _config(128, 64, 8, 3),
    _config(128, 32, 8, 2),
    _config(64, 64, 4, 3),
    _config(64, 32, 8, 2),
    _config(128, 64, 8, 3, descriptors=False),
    _config(64, 64, 4, 3, descriptors=False),
    _config(128, 32, 8, 2, descriptors=False),
    _config(64, 32, 8, 2, descriptors=False),
]

OVERLAPPED = triton.Config(
    {"BLOCK_M": 128, "BLOCK_N": 128, "OVERLAPPED": True}, num_warps=8, num_stages=2
)
"""Softmax beside the matrix products, the choice where it `overlaps`; not interpreted."""


def overlaps(width: int, architecture: int, descriptors: bool, masked: Masked = "no") -> bool:
    """Whether OVERLAPPED takes operands, and a device runs them; see `default_config`."""
    wide = padded(width) in (64, 128)
    return wide and architecture == 90 and descriptors and masked == "no"


def default_config(
    width: int, architecture: int, descriptors: bool, masked: Masked = "no"
) -> triton.Config:
    """The tile choice without a measurement.

    Args:
        width: features of a head, the most of queries, keys and values.
        architecture: 90 for sm_90.
        descriptors: whether the operands can be read through descriptors.
        masked: whether there is a mask, and whether it has a row for each query.

    Source: the largest blocks that compile without spills, see benchmarks/results/aot.json.
    """
    width = padded(width)
    if masked == "each" or (width > 128 and not descriptors):
        return _config(64, 32, 8, 2, descriptors=False)
    if not descriptors:
        if width > 64 and masked != "no":
            return _config(128, 32, 8, 2, descriptors=False)
        if width > 64 and architecture < 90:
            return _config(64, 64, 4, 3, descriptors=False)
        return _config(128, 64, 8, 3, descriptors=False)
    if architecture == 90:
        return _config(128, 32 if width == 256 else 128, 8, 2)
    if width <= 64:
        return _config(128, 64, 8, 3)
    if width <= 128:
        return _config(64, 64, 4, 3) if masked == "no" else _config(128, 32, 8, 2)
    return _config(64, 32, 8, 2)
