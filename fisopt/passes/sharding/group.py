"""Which ranks share the work: a group of torch.distributed, found when a Program is divided."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import distributed

from fisopt.errors import PreconditionError
from fisopt.passes.sharding.collectives import Ranks

UNBOUND = "fisopt_ranks"
"""The group of a graph that is only looked at."""


def ranks_of(degree: int | None, group: str | None, name: str) -> Ranks:
    """The ranks that a pass divides a Program among.

    Args:
        degree: how many share one clip; None for all of the group.
        group: the name of a group, None for all ranks.
        name: of the pass, for errors.

    Raises:
        PreconditionError: torch.distributed is not set up and the number of ranks is not said, or
            ranks are left over.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        if degree is None:
            raise PreconditionError(
                "torch.distributed is not set up, so the number of ranks is not known: start the "
                "script by torchrun and call torch.distributed.init_process_group() first, or "
                "give degree= to look at what a rank would run",
                pass_name=name,
            )
        return Ranks(degree, group or UNBOUND)
    known = process_group(group or _world())
    world = distributed.get_world_size(known)
    count = degree or world
    if world % count:
        raise PreconditionError(
            f"degree={count} does not divide the {world} ranks of the group; wanted a divisor of "
            f"{world}",
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
    return Ranks(count, _part_of(count, distributed.group.WORLD))


def process_group(name: str) -> distributed.ProcessGroup:
    """The process group of a name."""
    resolve: Any = vars(distributed.distributed_c10d)["_resolve_process_group"]
    found: distributed.ProcessGroup = resolve(name)
    return found


def _world() -> str:
    return str(distributed.group.WORLD.group_name)  # type: ignore[union-attr]


@cache
def _part_of(count: int, world: object) -> str:
    """The group of as many neighbouring ranks that this one is in; all ranks make them at once."""
    del world  # of which there is another after torch.distributed is set up anew
    own, _ = distributed.new_subgroups(count)  # type: ignore[no-untyped-call]
    return str(own.group_name)
