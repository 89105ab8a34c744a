"""Measurements of a forward call, read with one look at the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

import torch
from torch import Tensor

from fisopt.errors import InputError


def numbers(gauges: Mapping[str, Tensor], place: Callable[[], str]) -> dict[str, float]:
    """Those of some measurements that are one number, by name.

    Args:
        gauges: the measurements, real, of any shape.
        place: says which call it is, for an error.

    Raises:
        InputError: one, of whatever shape, holds NaN or infinity.
    """
    if not gauges:
        return {}
    read = torch.stack([*map(_number, gauges.values())]).tolist()
    found = dict(zip(gauges, read, strict=True))
    if wrong := next((name for name, x in found.items() if not isfinite(x)), None):
        raise InputError(
            f"{wrong} at {place()}: the measurement holds NaN or infinity, so no pass can decide "
            "by it; check the weights, the inputs and the dtype"
        )
    return {name: x for name, x in found.items() if gauges[name].numel() == 1}


def _number(measured: Tensor) -> Tensor:
    """A measurement as one number; of several numbers 0, NaN if they are not all finite."""
    return (measured if measured.numel() == 1 else measured * 0).sum().float()
