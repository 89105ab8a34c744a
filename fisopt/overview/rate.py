"""How fast a device multiplies: the rate that predicted times are FLOPs over."""

from __future__ import annotations

from functools import cache

import torch

from fisopt.overview.fastest import fastest

SIZES = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the product that is timed."""
TRIES = 5


def rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOPs a second of a large product on a device; None where it has none, such as on meta.

    It is measured once for each number of threads, in milliseconds.
    """
    return _rate(device, dtype, torch.get_num_threads())


@cache
def _rate(device: torch.device, dtype: torch.dtype, threads: int) -> float | None:
    del threads
    size = SIZES.get(device.type)
    if size is None:
        return None
    with torch.no_grad():
        try:
            a = torch.ones(size, size, device=device, dtype=dtype)
            seconds = fastest(lambda: torch.mm(a, a), device, least=TRIES)
        except RuntimeError:  # the device does not multiply this type, or has no memory left
            return None
    return 2 * size**3 / seconds
