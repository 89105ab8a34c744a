"""Attentions that come as packages: FlashAttention 3 and SageAttention."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Package:
    """An attention of a package.

    Attributes:
        module: what is imported.
        get: how to get it.
        attend: see `fisopt.rewrite.ops.attend_by.Attend`.
        largest: the most features a head may have.
        capabilities: the major CUDA capabilities that it runs on, none if on all.
    """

    module: str
    get: str
    attend: Callable[..., Tensor]
    largest: int
    capabilities: tuple[int, ...] = ()

    def refuses(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> str | None:
        """Why it does not run on operands (fake tensors), None if it does."""
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            return f"{self.module} cannot be imported ({error}); {self.get}"
        if query.device.type != "cuda":
            return f"{self.module} needs an NVIDIA GPU, not {query.device}"
        major, minor = torch.cuda.get_device_capability(query.device)
        if self.capabilities and major not in self.capabilities:
            return f"{self.module} is not for sm_{major}{minor}"
        if mask is not None:
            return f"{self.module} takes no mask"
        if query.dtype not in _HALF:
            return f"{self.module} takes bfloat16 and float16, not {query.dtype}"
        if max(query.shape[-1], value.shape[-1]) > self.largest:
            return f"{self.module} takes {self.largest} features a head at most"
        return None


def _flash_attention_3(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Any
) -> Any:
    from flash_attn_interface import flash_attn_func

    tokens_first = (x.transpose(1, 2) for x in (query, key, value))
    result = flash_attn_func(*tokens_first, softmax_scale=scale)
    return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)


def _sage(query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Any) -> Any:
    from sageattention import sageattn

    return sageattn(query, key, value, tensor_layout="HND", is_causal=False, sm_scale=scale)


PACKAGES = {
    "fa3": Package(
        "flash_attn_interface",
        "build it from the folder hopper of the FlashAttention repository",
        _flash_attention_3,
        256,
        (9,),
    ),
    "sage": Package("sageattention", "pip install sageattention", _sage, 128),
}
"""By the name that `fisopt.optimize` takes."""
