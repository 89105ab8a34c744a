"""TorchAO: its operators as it writes them in those of torch, which every pass knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._ops import OpOverload

from fisopt.rewrite.tools.tool import Tool

_LIBRARY = "torchao"


class TorchAO(Tool):
    """The weights of TorchAO, which are read as the tensors that they are made of."""

    def composites(self) -> Mapping[OpOverload, Callable[..., Any]]:
        """What it has told TorchInductor of its operators."""
        from torch._inductor.decomposition import decompositions

        return {
            op: function
            for op, function in decompositions.items()
            if isinstance(op, OpOverload) and op.namespace == _LIBRARY
        }


TOOL = TorchAO()
