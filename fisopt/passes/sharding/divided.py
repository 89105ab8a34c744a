"""A graph whose values are divided among ranks: every operator runs on parts where it can.

Going forward, an operator that follows the divided dimension of its operands runs on them as they
are.  One that combines tokens runs on parts of another dimension, such as heads, after an exchange;
one that follows none is given its operands whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from fisopt.errors import PassError, PreconditionError
from fisopt.passes.sharding.collectives import Ranks, own
from fisopt.passes.sharding.followed import Followed, States, follow, placed, related
from fisopt.passes.sharding.numbers import arguments
from fisopt.passes.sharding.shard import Shard, part, scaled
from fisopt.passes.sharding.what import What
from fisopt.rewrite.analysis.structure import attentions
from fisopt.rewrite.axes import FrameAxis, axes_of, set_axes
from fisopt.rewrite.edit.editor import Editing
from fisopt.rewrite.relations import Link, split_dim, virtual_shape
from fisopt.rewrite.views import PLACES

_GATHERED = 1 / 8
"""The share of its operands' values that an operator may get whole when others are exchanged."""


class Divided:
    """The values of one graph, and how they are divided.

    Args:
        editor: of the graph that is edited.
        graph: the graph as it was, node for node.
        twins: nodes of the edited graph, by node of ``graph``; themselves if not given.
        ranks: who shares the work.
        index: makes the positions of a rank's entries of an axis, int64.
        what: is divided.

    Attributes:
        native: how each value is computed, None for whole.
        gathered: values that something needs whole though they are computed divided.
        reasons: operators that combine what is divided and got it whole, one line each.
    """

    def __init__(
        self,
        editor: Editing,
        graph: fx.Graph,
        twins: dict[fx.Node, fx.Node],
        ranks: Ranks,
        index: Callable[[FrameAxis], fx.Node],
        what: What,
    ) -> None:
        self.editor, self.graph, self.twins = editor, graph, twins
        self.ranks, self.index, self.what = ranks, index, what
        self.native: dict[fx.Node, Shard | None] = {}
        self.gathered: set[fx.Node] = set()
        self.reasons: dict[str, None] = {}
        self._home: dict[fx.Node, Shard | None] = {}
        self._held: dict[tuple[fx.Node, Shard | None], fx.Node] = {}

    def put(self, node: fx.Node, shard: Shard | None, made: fx.Node) -> None:
        """Say what a rank has of a value, and how that is divided."""
        self.native[node] = shard
        self._held[node, shard] = made

    def take(self, node: fx.Node, shard: Shard, made: fx.Node) -> None:
        """Say what a rank is given of an argument."""
        self.put(node, shard, made)
        self._home[node] = self.what.home(node) or shard
        self._set_axes(made, node, shard)

    def divide(self, node: fx.Node, shard: Shard) -> None:
        """Give a rank its part of what all of them have whole."""
        self._held[node, None] = node
        self.take(node, shard, own(self.editor, node, shard, self.index(shard.axis)))

    def home(self, node: fx.Node) -> Shard | None:
        """Where a value has what is divided, None if it has nothing of it."""
        if node not in self._home:
            self._home[node] = self.what.home(node)
        return self._home[node]

    def get(self, node: fx.Node, want: Shard | None) -> fx.Node:
        """A value as it is wanted, converted here if it is not there yet."""
        if want is None and self.native.get(node) is None:
            return self._held.get((node, None)) or self.twins.get(node, node)
        if (node, want) not in self._held:
            self._held[node, want] = self._converted(node, want)
        return self._held[node, want]

    def _converted(self, node: fx.Node, want: Shard | None) -> fx.Node:
        held, editor = self.native.get(node), self.editor
        if want is None:
            assert held is not None
            self.gathered.add(node)
            made = self.ranks.whole(editor, self.get(node, held), held)
            set_axes(made, axes_of(node))
            return made
        if held is None or held.dim == want.dim or not (held.axis.pure or want.axis.pure):
            made = own(editor, self.get(node, None), want, self.index(want.axis))
        else:
            made = self.ranks.exchange(
                editor, self.get(node, held), held, want, lambda: self.index(want.axis)
            )
        self._set_axes(made, node, want)
        return made

    def _set_axes(self, made: fx.Node, node: fx.Node, shard: Shard | None) -> None:
        """The frames of a rank's part."""
        axes: list[FrameAxis | None] = list(axes_of(node))
        if shard is not None and axes:
            size = shard.sizes(virtual_shape(node), self.ranks.count)[shard.dim]
            axes[shard.dim] = scaled(axes[shard.dim], size, shard, self.ranks.count)
        set_axes(made, tuple(axes))

    def visit(self, node: fx.Node, *, in_block: bool) -> None:
        """Let a call compute a rank's part of its value, where an operand is divided.

        Args:
            node: the call.
            in_block: whether it is one of a block: another dimension may be divided for it, and
                it is said where it gets its operands whole.
        """
        states = {n: self.native.get(n) for n in node.all_input_nodes}
        if not any(states.values()):
            return
        for wanted in self._attempts(node, states, in_block):
            found = follow(node, wanted)
            if found is not None and (made := self._made(node, found)) is not None:
                self._done(node, found, made)
                return
        raise PassError(
            f"{node.format_node()} cannot be computed on whole operands",
            pass_name=self.editor.pass_name,
        )

    def _attempts(self, node: fx.Node, states: States, in_block: bool) -> Iterator[States]:
        """How operands may be divided, the cheapest first."""
        yield states
        homes = {n: self.home(n) if s is not None else None for n, s in states.items()}
        if homes != states and any(homes.values()):
            yield homes
        for operand, shard in states.items():
            if shard is not None and shard != homes[operand]:
                for out in placed(node, related(node, states), operand, shard):
                    if out is not None:
                        yield self._for(node, states, out)
        tokens = [n for n, s in states.items() if s is not None and s == homes[n]]
        moves = node.target in PLACES or split_dim(node) is not None
        if in_block and self.what.exchanges and tokens and not moves:
            other = self._other(node, states, tokens)
            yield from [] if other is None else [self._for(node, states, other)]
        if in_block and tokens:
            self.reasons[f"{node.target} combines {self.what.word}, which are gathered for it"] = (
                None
            )
        yield dict.fromkeys(states)

    def _for(self, node: fx.Node, states: States, out: Shard) -> States:
        """How operands are divided for a result that is: those that do not reach it are whole."""
        found = related(node, dict.fromkeys(states))
        wanted: dict[fx.Node, Shard | None] = dict.fromkeys(states)
        for link in found.links:
            if link.out == out.dim and (axis := link.invert(out.axis)) is not None:
                wanted[link.operand] = Shard(link.dim, axis)
        return wanted

    def _other(self, node: fx.Node, states: States, tokens: list[fx.Node]) -> Shard | None:
        """A dimension of the result to divide instead, which most of the operands follow to it."""
        found, sizes, count = related(node, states), virtual_shape(node), self.ranks.count
        moved = {k.out for k in found.links if k.operand in tokens and k.dim != _dim(states, k)}
        moved -= {k.out for k in found.links if k.dim == _dim(states, k)}
        every = sum(math.prod(virtual_shape(n)) for n in tokens)
        known: dict[int, float] = {}
        for d in moved:
            reached = {k.operand for k in found.links if k.out == d}
            whole = sum(math.prod(virtual_shape(n)) for n in tokens if n not in reached)
            if whole <= every * _GATHERED:
                known[d] = part(sizes[d], count) * count / sizes[d]
        fit = [d for d in known if sizes[d] >= count]
        if fit:
            best = min(fit, key=lambda d: (known[d], -d))
            return Shard(best, FrameAxis(sizes[best]))
        self._refuse_few(node, max((sizes[d] for d in known), default=1))
        return None

    def _refuse_few(self, node: fx.Node, heads: int) -> None:
        if any(node in a.members or node is a.result for a in attentions(self.graph)):
            raise PreconditionError(
                f"an attention of {heads} heads cannot be divided among {self.ranks.count} ranks; "
                f"wanted a degree of at most {heads}",
                pass_name=self.editor.pass_name,
                node=node,
            )

    def _made(self, node: fx.Node, found: Followed) -> fx.Node | None:
        """The call on a rank's parts, None if what it makes is not the part that was expected."""
        count = self.ranks.count
        args = arguments(node, found, count)
        if args is None:
            return None
        given = {n: self.get(n, found.operands.get(n)) for n in node.all_input_nodes}
        mapped: tuple[Any, Any] = fx.node.map_arg((args, node.kwargs), lambda n: given[n])
        try:
            made = self.editor.call(node.target, *mapped[0], axes=(), **mapped[1])
        except PassError:
            return None
        wanted = virtual_shape(node)
        if found.result is not None:
            wanted = tuple(found.result.sizes(wanted, count))
        if virtual_shape(made) != wanted:
            return None
        self._set_axes(made, node, found.result)
        return made

    def _done(self, node: fx.Node, found: Followed, made: fx.Node) -> None:
        self._home[node] = self._moved_home(node, found)
        self.put(node, found.result, made)
        if found.result is None:
            old = self.twins.get(node, node)
            old.replace_all_uses_with(made, lambda user: user is not made)
            self._home[made], self._held[made, None] = self._home[node], made

    def _moved_home(self, node: fx.Node, found: Followed) -> Shard | None:
        """Where the tokens of a result are: as its axes say, or where its operands' are."""
        if (home := self.what.home(node)) is not None:
            return home
        states = {n: self.home(n) for n in node.all_input_nodes}
        relation = related(node, states)
        for operand, shard in states.items():
            for out in placed(node, relation, operand, shard) if shard is not None else ():
                if out is not None:
                    return out
        return None


def _dim(states: States, link: Link) -> int | None:
    """The dimension of a link's operand that is divided."""
    shard = states.get(link.operand)
    return None if shard is None else shard.dim
