"""Ranks of an artefact: a file calls their groups by names of ours, which loading binds.

The graph of a divided Program is one for all ranks and says the group of each collective by a name.
Groups of torch have other names in every process, so that a file says what its ranks divide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import distributed, fx

from fisopt.artefact.manifest import ShareInfo
from fisopt.errors import ExportError, OptionError, RankError, shown
from fisopt.passes.sharding.group import is_set_up, pair, process_group, ranks_of
from fisopt.rewrite.mesh import Share

LIBRARY = "_c10d_functional"


def share_infos(mesh: Sequence[Share]) -> tuple[ShareInfo, ...]:
    """What a manifest says of the ranks.

    Raises:
        ExportError: they divide calls, which no graph says.
    """
    if any(share.of == "branches" for share in mesh):
        raise ExportError(
            "export: GuidanceParallel pairs two calls of a step, which a file cannot hold; "
            "export without it, or with both branches in one batch"
        )
    return tuple(ShareInfo(s.of, s.count, f"fisopt_{s.of}") for s in mesh)


def name_groups(graph: fx.Graph, mesh: Sequence[Share]) -> None:
    """Write the names of a file in the place of those of this process."""
    names = {share.group: info.group for share, info in zip(mesh, share_infos(mesh), strict=True)}
    regroup(graph, names)


def regroup(graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Exchange the names of groups in the collectives of a graph.

    Raises:
        ExportError: a collective is of a group without a new name.
    """
    for node, place in _collectives(graph):
        if (known := node.args[place]) not in names:
            raise ExportError(
                f"the graph calls {node.target} in the group {shown(known)}, and the manifest "
                f"says {', '.join(names) or 'no ranks'}; export it again"
            )
        args: list[Any] = list(node.args)
        args[place] = names[str(known)]
        node.args = tuple(args)


def check_groups(graph: fx.Graph, mesh: Iterable[ShareInfo]) -> None:
    """Insist that a graph calls no other groups than its manifest says; see `regroup`."""
    regroup(graph, {share.group: share.group for share in mesh})


def groups_of(
    mesh: Sequence[ShareInfo], group: distributed.ProcessGroup | str | None
) -> dict[str, str]:
    """The groups of this process in the place of those of a file.

    Args:
        mesh: what the manifest says.
        group: the ranks to run on, None for all.

    Raises:
        OptionError: a group is given for an artefact of one rank, or of two kinds of groups.
        RankError: there are no ranks, or their number does not fit.
    """
    if group is not None and len(mesh) != 1:
        many = "of several groups, which are made of all ranks" if mesh else "of one rank"
        raise OptionError(f"load: group={shown(group)}: the artefact is {many}; leave it out")
    if not mesh:
        return {}
    wanted = " x ".join(f"{share.count} ({share.of})" for share in mesh)
    if not is_set_up():
        raise RankError(
            f"the artefact is divided among ranks: {wanted}; start the script with torchrun and "
            "call torch.distributed.init_process_group() before fisopt.load"
        )
    name = group if isinstance(group, str) or group is None else str(group.group_name)
    known = distributed.group.WORLD if name is None else process_group(name)
    world, count = distributed.get_world_size(known), 1
    for share in mesh:
        count *= share.count
    if world % count or (name is not None and world != count):
        raise RankError(
            f"the artefact is divided among ranks: {wanted}; here are {world}: start as many, or "
            "export it for this number"
        )
    bound: dict[str, str] = {}
    before: list[Share] = []
    for share in mesh:
        ranks = (
            ranks_of(share.count, name, "load", before) if share.of == "tokens" else pair("load")
        )
        assert ranks is not None
        bound[share.group] = ranks.group
        before.append(Share(share.of, ranks.group, share.count))
    return bound


def _collectives(graph: fx.Graph) -> Iterable[tuple[fx.Node, int]]:
    """The collectives of a graph, and which argument of each is the group."""
    for node in graph.nodes:
        if getattr(node.target, "namespace", None) == LIBRARY:
            names = [argument.name for argument in node.target._schema.arguments]
            if "group_name" in names:
                yield node, names.index("group_name")
