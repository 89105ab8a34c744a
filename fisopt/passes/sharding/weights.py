"""Weights divided among ranks: each block's by torch's fully_shard, once, before capture.

Source: PyTorch FSDP, arXiv:2304.11277; a shard is a slice of the first dimension of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import distributed, nn

from fisopt.errors import PreconditionError
from fisopt.passes.sharding.agreement import are_processes, compare, weights_digest
from fisopt.passes.sharding.collectives import Ranks
from fisopt.passes.sharding.group import process_group
from fisopt.rewrite.tools.fsdp import is_sharded


def shard_weights(blocks: Mapping[str, nn.Module], ranks: Ranks, name: str) -> None:
    """Let each rank of a group hold a part of the weights of some blocks.

    They move to the device that the group sends from: a GPU where it has a backend for one.

    Args:
        blocks: the blocks by path, those that are divided already among them.
        ranks: the group.
        name: of the pass, for errors.

    Raises:
        PreconditionError: a weight is quantised, or on the meta device.
        RankError: two ranks hold other weights.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    if not are_processes(ranks.group):
        return
    whole = {p: b for p, b in blocks.items() if not any(map(is_sharded, b.parameters()))}
    for path, block in whole.items():
        for key, weight in block.named_parameters():
            if type(weight) is not nn.Parameter or weight.is_meta or not _is_float(weight):
                raise PreconditionError(
                    f"shard_weights=True: {path}.{key} is a {type(weight).__name__} of "
                    f"{weight.dtype} on {weight.device}; wanted parameters of floating-point "
                    "numbers that are loaded: leave it out for a quantised model",
                    pass_name=name,
                )
    compare({f"weights of {p}": weights_digest(b) for p, b in whole.items()}, ranks.group)
    group = process_group(ranks.group)
    mesh = DeviceMesh.from_group(group, _device(group))
    for block in whole.values():
        fully_shard(block, mesh=mesh)


def _is_float(weight: nn.Parameter) -> bool:
    return weight.is_floating_point() and weight.element_size() > 1


def _device(group: distributed.ProcessGroup) -> str:
    """The type of device that a group sends from."""
    gpu = torch.cuda.is_available() and "cuda" in distributed.get_backend_config(group)
    return "cuda" if gpu else "cpu"
