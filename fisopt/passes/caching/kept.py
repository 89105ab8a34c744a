"""What a step cache keeps from one denoising step to the next, and how it is carried on."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.axes import axes_of, set_axes
from fisopt.rewrite.rewriter import Rewriter

aten = torch.ops.aten
_TINY = 1e-12
"""What a change is compared with where there is nothing to compare it with."""


class Kept:
    """The state of a step cache, in the Program of one step.

    Args:
        rewriter: makes what is needed, before the node where new nodes go.
        order: 0 keeps what blocks added last, 1 also how fast that changed.
        counted: whether the steps since then are counted.
        first: whether no earlier step has left anything.
    """

    def __init__(self, rewriter: Rewriter, order: int, counted: bool, first: bool) -> None:
        self._rewriter, self._order, self._first = rewriter, order, first
        self._counted = counted or order > 0

    def like(self, name: str, node: fx.Node) -> fx.Node:
        """A tensor of the form of a node, as an earlier step has left it."""
        value = node.meta["val"]
        held = self._rewriter.load(name, value.shape, value.dtype, value.device)
        set_axes(held, axes_of(node))
        return held

    def count(self, beside: fx.Node) -> fx.Node:
        """How many steps in a row have reused [], float32; on the device of a node."""
        return self._rewriter.load("run", (), torch.float32, beside.meta["val"].device)

    def passed_by(self, beside: fx.Node, computes: bool) -> fx.Node | None:
        """The steps from the last that was computed to this one [], and count this one."""
        call, past = self._rewriter.call, None
        if not self._counted:
            return None
        if not self._first and (self._order or not computes):
            past = call(aten.add.Scalar, self.count(beside), 1.0)
        run = past
        if computes:
            device = beside.meta["val"].device
            run = call(aten.full.default, [], 0.0, dtype=torch.float32, device=device)
        assert run is not None
        self._rewriter.store("run", run)
        return past

    def keep(self, i: int, added: fx.Node, past: fx.Node | None) -> None:
        """Keep what blocks have added at a step that computes them.

        Args:
            i: which of the values it was added to.
            added: what was added.
            past: the steps since it was computed before.
        """
        call = self._rewriter.call
        if self._order and past is None:
            self._rewriter.store(f"slope_{i}", call(aten.zeros_like.default, added))
        elif self._order:
            change = call(aten.sub.Tensor, added, self.like(f"added_{i}", added))
            slope = call(aten.div.Tensor, change, past)
            self._rewriter.store(f"slope_{i}", slope)
        self._rewriter.store(f"added_{i}", added)

    def reused(self, i: int, like: fx.Node, past: fx.Node | None) -> fx.Node:
        """What blocks are taken to add at a step that does not compute them."""
        call, added = self._rewriter.call, self.like(f"added_{i}", like)
        self._rewriter.store(f"added_{i}", added)
        if not self._order:
            return added
        slope = self.like(f"slope_{i}", like)
        self._rewriter.store(f"slope_{i}", slope)
        return call(aten.add.Tensor, added, call(aten.mul.Tensor, slope, past))

    def change(self, now: fx.Node, reference: fx.Node) -> fx.Node:
        """The mean change between two tensors over the mean of the reference []."""
        moved = self._mean(self._rewriter.call(aten.sub.Tensor, now, reference))
        whole = self._rewriter.call(aten.clamp_min.default, self._mean(reference), _TINY)
        return self._rewriter.call(aten.div.Tensor, moved, whole)

    def _mean(self, node: fx.Node) -> fx.Node:
        call, wide = self._rewriter.call, torch.promote_types(node.meta["val"].dtype, torch.float32)
        return call(aten.mean.default, call(aten.abs.default, node), dtype=wide, axes=())
