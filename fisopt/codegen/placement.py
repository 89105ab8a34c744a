"""Where a graph computes: on the device of its weights, or on another that holds few of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.checked import choice, count
from fisopt.codegen.lowering import check, signature
from fisopt.errors import OptionError
from fisopt.rewrite.edit.graph_editor import GraphEditor


@dataclass(frozen=True)
class Offload:
    """What is said of weights that stay on the host.

    Attributes:
        prefetch: the weights of so many stages are copied while the one before them computes.
    """

    prefetch: int = 1

    @staticmethod
    def of(offload: object, prefetch: int) -> Offload | None:
        """What `fisopt.optimize` is told of weights, None if they may be on the device.

        Raises:
            OptionError: it is not "block", or no number of blocks, or blocks are copied ahead
                though none is copied.
        """
        count("prefetch", prefetch, 0)
        if offload is not None:
            choice("offload", offload, ("block",))
            return Offload(prefetch)
        if prefetch != Offload.prefetch:
            raise OptionError(
                f"prefetch={prefetch} has no effect without offload; write offload='block', "
                "prefetch=... or leave it out"
            )
        return None


@dataclass
class Held:
    """Bytes of weights of one model on its device, as its graphs count them.

    Attributes:
        device: the device.
        peak: the most at one time, in one call.
        total: those of all stages of one graph together.
        copied: all that was copied so far.
        unpinned: of that of one call, what is not pinned; copies of it hold up the processor.
        pins: whether there is memory left to pin.
    """

    device: str = ""
    peak: int = 0
    total: int = 0
    copied: int = 0
    unpinned: int = 0
    pins: bool = True

    def __str__(self) -> str:
        """In words, for reports, with what torch has allocated of a GPU in all."""
        text = f"at most {size(self.peak)} of {size(self.total)} of weights on {self.device}"
        if torch.device(self.device).type == "cuda":
            text += f", where {size(torch.cuda.max_memory_allocated(self.device))} were allocated"
        if self.unpinned:
            text += f"; {size(self.unpinned)} are not pinned, so their copies are synchronous"
        return text


def size(count: int) -> str:
    """A number of bytes, for reading."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Placement:
    """A device, beside the host, on which the weights of one stage after the other are.

    Attributes:
        device: the device.
        offload: what the user says.
        held: what is counted.
    """

    device: torch.device
    offload: Offload
    held: Held = field(default_factory=Held)


def compute_on(module: fx.GraphModule, device: torch.device) -> None:
    """Let a lowered graph that was captured on one device compute on another, in place.

    Its weights stay where they are: whoever calls its stages hands them over.
    """
    stages = [m for _, m in module.named_children() if isinstance(m, fx.GraphModule)]
    for each in (*stages, module):
        mode = GraphEditor.of(each, "compute on").mode

        def there(value: Any, mode: Any = mode) -> Any:
            if isinstance(value, torch.device):
                return device
            if not isinstance(value, Tensor):
                return value
            with mode:
                return torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=device
                )

        for node in each.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, _device(device))
            node.kwargs = fx.node.map_aggregate(node.kwargs, _device(device))
            if "val" in node.meta:
                node.meta["val"] = fx.node.map_aggregate(node.meta["val"], there)
    for stage in stages:
        for path in {str(n.target) for n in stage.graph.nodes if n.op == "get_attr"}:
            owner, _, name = path.rpartition(".")
            holder: Any = stage.get_submodule(owner)
            constant = getattr(holder, name)
            delattr(holder, name)
            holder.register_buffer(name, constant.to(device), persistent=False)
        check(stage, signature(stage.graph), "compute on")
        stage.recompile()


def _device(device: torch.device) -> Any:
    return lambda x: device if isinstance(x, torch.device) else x
