"""Optimisers: AdamW of torch, or with states of 8 bits of torchao."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisopt.errors import InputError

Optimiser = Literal["adamw", "adamw-8bit"]
OPTIMISERS: tuple[Optimiser, ...] = ("adamw", "adamw-8bit")
_BETAS = (0.9, 0.99)


def optimiser(name: Optimiser, parameters: Iterable[nn.Parameter], rate: float) -> Any:
    """Make an optimiser without weight decay.

    Raises:
        InputError: torchao is not installed.
    """
    held = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(held, lr=rate, betas=_BETAS, weight_decay=0.0)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        message = "distill: optimiser='adamw-8bit' needs torchao: pip install torchao"
        raise InputError(message) from error
    return AdamW8bit(held, lr=rate, betas=_BETAS, weight_decay=0.0)


def set_rate(made: Any, rate: float) -> None:
    """Set the learning rate, which some optimisers hold as a tensor that stays the same."""
    for group in made.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
