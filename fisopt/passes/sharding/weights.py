"""Weights divided among ranks: each block's by torch's fully_shard, once, before capture.

Source: PyTorch FSDP, arXiv:2304.11277; a shard is a slice of the first dimension of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import distributed, nn

from fisopt.errors import InputError, PreconditionError
from fisopt.passes.sharding.agreement import are_processes, compare, digest, together
from fisopt.passes.sharding.collectives import Ranks
from fisopt.passes.sharding.group import process_group
from fisopt.rewrite.program import Program
from fisopt.rewrite.tools.fsdp import is_sharded


def shard_weights(
    model: nn.Module, blocks: Mapping[str, nn.Module], ranks: Ranks, name: str
) -> None:
    """Let each rank of a group hold a part of the weights of some blocks.

    They move to the device that the group sends from: a GPU under NCCL.

    Args:
        model: the model.
        blocks: its blocks by path; those that are divided already stay as they are.
        ranks: the group.
        name: of the pass, for errors.

    Raises:
        PreconditionError: there are no blocks, or a weight is quantised, on the meta device, or
            of several modules.
        RankError: two ranks hold other weights.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not are_processes(ranks.group):
        return
    if not blocks:
        raise PreconditionError(
            f"shard_weights=True: the spec of {type(model).__name__} names no module as a block; "
            "name the modules that process the video, spec=fisopt.ModelSpec(blocks=..., grid=...)",
            pass_name=name,
        )
    outer = {p: b for p, b in blocks.items() if not any(p.startswith(f"{q}.") for q in blocks)}
    whole = {p: b for p, b in outer.items() if not isinstance(b, FSDPModule)}
    _check(model, whole, name)
    facts = {
        f"weight {path}.{key}": digest(weight)
        for path, block in whole.items()
        for key, weight in block.named_parameters()
    }
    with together(ranks.count):
        compare(facts, ranks.group)
    group = process_group(ranks.group)
    mesh = DeviceMesh.from_group(group, "cuda" if _sends_from_gpus(group) else "cpu")
    for block in whole.values():
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)


def check_divided(program: Program) -> None:
    """Insist that ranks which divide weights run the same Program at the same time.

    Each gathers the weights of a block when it comes to it, so that ranks which do not keep
    together would gather those of different blocks.

    Raises:
        InputError: no pass divides the tokens among the ranks that divide the weights.
    """
    model = program.source.model
    weights: list[Any] = [x for x in model.parameters() if is_sharded(x)]
    meshes = [sorted(m.mesh.flatten().tolist()) for m in {x.device_mesh for x in weights}]
    divided = [held for held in meshes if len(held) > 1]
    if not divided:
        return
    shared = [
        sorted(distributed.get_process_group_ranks(process_group(s.group)))
        for s in program.mesh
        if s.of == "tokens"
    ]
    for held in divided:
        if held not in shared:
            raise InputError(
                f"the weights of {type(model).__name__} are divided among the ranks {held}, and "
                f"the tokens among {shared[0] if shared else 'none'}: ranks that gather weights "
                "have to keep together; add SequenceParallel() over the same ranks"
            )


def _check(model: nn.Module, blocks: Mapping[str, nn.Module], name: str) -> None:
    inside = {id(m) for b in blocks.values() for m in b.modules()}
    owners: dict[int, list[tuple[str, bool]]] = {}
    for path, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is None:
                continue
            full, divided = f"{path}.{key}" if path else key, id(module) in inside
            owners.setdefault(id(weight), []).append((full, divided))
            if divided and not _can_be_divided(weight):
                raise PreconditionError(
                    f"shard_weights=True: {full} is a {type(weight).__name__} of {weight.dtype} "
                    f"on {weight.device}; wanted parameters of floating-point numbers that are "
                    "loaded: leave it out for a quantised model",
                    pass_name=name,
                )
    for places in owners.values():
        if len(places) > 1 and any(divided for _, divided in places):
            raise PreconditionError(
                f"shard_weights=True: {' and '.join(p for p, _ in places)} are one weight, which "
                "dividing would make two; leave it out",
                pass_name=name,
            )


def _can_be_divided(weight: Any) -> bool:
    plain = type(weight) is nn.Parameter and not weight.is_meta
    return plain and weight.is_floating_point() and weight.element_size() > 1


def _sends_from_gpus(group: Any) -> bool:
    return "nccl" in distributed.get_backend_config(group)
