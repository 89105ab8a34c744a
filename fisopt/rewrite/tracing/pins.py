"""Which kernels of attention a model allows itself, against what holds around it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Pins(TorchFunctionMode):
    """Inside, takes note of attentions that run under `torch.nn.attention.sdpa_kernel`.

    A graph does not keep that choice.

    Attributes:
        found: the kernels that were left, in words, once for each choice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._around = _allowed()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and (allowed := _allowed()) != self._around:
            self.found[" or ".join(allowed) or "no kernel"] = None
        return func(*args, **(kwargs or {}))


def _allowed() -> list[str]:
    kernels: Any = torch.backends.cuda
    enabled = {
        "flash": kernels.flash_sdp_enabled(),
        "efficient": kernels.mem_efficient_sdp_enabled(),
        "math": kernels.math_sdp_enabled(),
        "cudnn": kernels.cudnn_sdp_enabled(),
    }
    return [name for name, held in enabled.items() if held]
