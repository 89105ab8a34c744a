"""Gradient checkpointing: each block keeps its inputs alone and runs again for its gradient."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils.checkpoint import checkpoint


def asks_for_checkpoints(model: nn.Module) -> bool:
    """Whether ``enable_gradient_checkpointing`` was called, as models of diffusers have it."""
    return bool(getattr(model, "gradient_checkpointing", False))


def checkpoint_blocks(module: fx.GraphModule) -> None:
    """Have each stage of a graph run again for its gradient."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for name in called:
        module.set_submodule(name, Checkpointed(module.get_submodule(name)))


class Checkpointed(nn.Module):
    """A stage that keeps its inputs alone for its gradient.

    Attributes:
        stage: what runs.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *values: Any) -> Any:
        """Run it."""
        return checkpoint(self.stage, *values, use_reentrant=False)
