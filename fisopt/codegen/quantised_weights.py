"""Weights in FP8: quantised once, shared by every graph, and again when they have changed."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fisopt.codegen.fp8 import quantised

SAMPLE = 4096
"""So many numbers of a weight are compared with what was quantised: writes through ``.data``, as
those of a LoRA that is fused, leave its version as it was."""


@dataclass(frozen=True)
class _Kept:
    """A weight in FP8, and what it was made of."""

    mark: tuple[Any, ...]
    sample: Tensor
    rows: Tensor
    scale: Tensor


_KEPT: MutableMapping[Tensor, _Kept] = WeakIdKeyDictionary()


class QuantisedWeights(nn.Module):
    """Called with weights, gives each as FP8 and its scales.

    Args:
        model: holds the weights.  While a hook moves it between devices nothing is kept: what is
            quantised would stay where the weights do not.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._state = vars(model)

    @torch.no_grad()
    def forward(self, *weights: Tensor) -> list[Tensor]:
        """Return rows and scales of each weight, in turns.

        Shapes: weights [N, K]; results [N, K] float8_e4m3fn and [1, N] float32.
        """
        if "_hf_hook" in self._state:
            made = [_made(weight) for weight in weights]
        else:
            known = [_KEPT.get(weight) for weight in weights]
            made = [
                kept if kept is not None and kept.mark == _mark(weight) else _keep(weight)
                for weight, kept in zip(weights, known, strict=True)
            ]
            made = _written(weights, made)
        return [x for kept in made for x in (kept.rows, kept.scale)]


def forget(model: nn.Module) -> None:
    """Drop what is kept of a model's weights."""
    for weight in model.parameters():
        _KEPT.pop(weight, None)


def _written(weights: tuple[Tensor, ...], made: list[_Kept]) -> list[_Kept]:
    """What is kept, made anew of the weights that were written through ``.data``."""
    if not weights or weights[0].is_meta or _capturing(weights[0]):
        return made
    live = [_sample(weight) for weight in weights]
    if torch.equal(torch.cat(live), torch.cat([kept.sample for kept in made])):
        return made
    return [
        kept if torch.equal(now, kept.sample) else _keep(weight)
        for weight, now, kept in zip(weights, live, made, strict=True)
    ]


def _capturing(weight: Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _keep(weight: Tensor) -> _Kept:
    _KEPT[weight] = made = _made(weight)
    return made


def _made(weight: Tensor) -> _Kept:
    with torch.inference_mode(False):
        own = weight.detach().clone() if weight.is_inference() else weight.detach()
        rows, scale = quantised(own)
        return _Kept(_mark(weight), _sample(own).clone(), rows, scale.t().contiguous())


def _mark(weight: Tensor) -> tuple[Any, ...]:
    """What changes when a weight is exchanged, moved, or written in ways that torch counts."""
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.device, weight.dtype, weight.shape


def _sample(weight: Tensor) -> Tensor:
    """Some numbers of a weight, of every column and of rows all over it."""
    step = max(1, weight.numel() // SAMPLE) | 1
    count = -(-weight.numel() // step)
    if weight.is_contiguous():
        return weight.as_strided((count,), (step,))
    return weight.reshape(-1)[::step]
