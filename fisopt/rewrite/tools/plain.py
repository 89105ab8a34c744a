"""Plain tensors: a weight of a class of its own as what its numbers are stored in."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_KNOWN: MutableMapping[Tensor, tuple[Any, Tensor]] = WeakIdKeyDictionary()


def plain(weight: Tensor) -> Tensor:
    """What a weight is stored in, without its class, which would go over to results.

    It is one tensor as long as the weight is not written, so that it is pinned once.
    """
    with torch._C.DisableTorchFunctionSubclass():
        mark = weight.data_ptr(), None if weight.is_inference() else weight._version
        known = _KNOWN.get(weight)
        if known is None or known[0] != mark:
            known = _KNOWN[weight] = mark, weight.detach().as_subclass(Tensor)
        return known[1]
