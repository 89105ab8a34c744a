"""Which ranks share the work: groups of torch.distributed, found when a Program is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import distributed

from fisopt.errors import PreconditionError, RankError
from fisopt.passes.sharding.collectives import Ranks
from fisopt.rewrite.mesh import Share

UNBOUND = "fisopt_ranks"
"""The group of a graph that is only looked at."""
UNBOUND_PAIR = "fisopt_pair"
"""The same of two ranks that divide guidance branches."""


def ranks_of(degree: int | None, group: str | None, name: str, mesh: Sequence[Share] = ()) -> Ranks:
    """The ranks that a pass divides a Program among.

    Args:
        degree: how many share one clip; None for all of the group.
        group: the name of a group, None for all ranks.
        name: of the pass, for errors.
        mesh: what is divided already; its groups are across those that are looked for.

    Raises:
        PreconditionError: torch.distributed is not set up and the number of ranks is not said, or
            ranks are left over.
    """
    if not is_set_up():
        if degree is None:
            raise PreconditionError(NOT_SET_UP, pass_name=name)
        return Ranks(degree, group or UNBOUND)
    known = process_group(group or _world())
    world, others = distributed.get_world_size(known), math.prod(s.count for s in mesh)
    if group is not None:
        others = 1
    count = degree or max(1, world // others)
    if world % (count * others):
        among = f" (times {others} of other passes)" if others > 1 else ""
        raise PreconditionError(
            f"degree={count}{among} does not divide the {world} ranks of the group; wanted a "
            f"divisor of {world // others}",
            pass_name=name,
        )
    if count == world:
        return Ranks(count, group or _world())
    if group is not None:
        raise PreconditionError(
            f"degree={count} is less than the {world} ranks of group {group!r}; make a group of "
            f"{count} ranks, or leave the degree out",
            pass_name=name,
        )
    return Ranks(count, _neighbours(count, distributed.group.WORLD))


def pair(name: str) -> Ranks | None:
    """Two ranks that lie half of all ranks apart, this one among them; None if it is the only one.

    Args:
        name: of the pass that asks, for errors.

    Raises:
        PreconditionError: the number of ranks is odd.
    """
    if not is_set_up():
        return Ranks(2, UNBOUND_PAIR)
    world = distributed.get_world_size()
    if world == 1:
        return None
    if world % 2:
        raise PreconditionError(
            f"{world} ranks cannot be paired; wanted an even number of them", pass_name=name
        )
    return Ranks(2, _world() if world == 2 else _apart(distributed.group.WORLD))


def is_set_up() -> bool:
    """Whether this process is one of some ranks."""
    return distributed.is_available() and distributed.is_initialized()


def process_group(name: str) -> distributed.ProcessGroup:
    """The process group of a name."""
    resolve: Any = vars(distributed.distributed_c10d)["_resolve_process_group"]
    found: distributed.ProcessGroup = resolve(name)
    return found


def check_backend(name: str, device: torch.device) -> None:
    """Insist that a group sends tensors of a device.

    Raises:
        RankError: none of its backends does.
    """
    known: Any = process_group(name)
    try:
        known._get_backend(device)
    except RuntimeError as error:
        built = {"nccl": distributed.is_nccl_available(), "gloo": distributed.is_gloo_available()}
        raise RankError(
            f"the ranks send no tensors of a {device.type} device: their process group is of "
            f"{distributed.get_backend_config(known)}, and this torch is built with "
            f"{' and '.join(n for n, has in built.items() if has) or 'no backend'}; call "
            "torch.distributed.init_process_group with the backend of the device: 'nccl' for "
            "GPUs of NVIDIA, 'gloo' for the CPU"
        ) from error


NOT_SET_UP = (
    "torch.distributed is not set up, so the number of ranks is not known: start the script by "
    "torchrun and call torch.distributed.init_process_group() first, or give degree= to look at "
    "what a rank would run"
)


def _world() -> str:
    return str(distributed.group.WORLD.group_name)  # type: ignore[union-attr]


@cache
def _neighbours(count: int, world: object) -> str:
    """The group of as many neighbouring ranks that this one is in; all ranks make them at once."""
    del world  # of which there is another after torch.distributed is set up anew
    own, _ = distributed.new_subgroups(count)  # type: ignore[no-untyped-call]
    return str(own.group_name)


@cache
def _apart(world: object) -> str:
    """The pair that this rank is in; all ranks make them at once."""
    del world
    half = distributed.get_world_size() // 2
    pairs = [[rank, rank + half] for rank in range(half)]
    own, _ = distributed.new_subgroups_by_enumeration(pairs)  # type: ignore[no-untyped-call]
    return str(own.group_name)
