"""Step caches: what some blocks add to the video is taken from an earlier denoising step.

Sources: FirstBlockCache (ParaAttention, diffusers) and DBCache (cache-dit), which decide by how
much the update of the first blocks has changed; TaylorSeer, arXiv:2503.06923, for the forecast.
Exact: the blocks that are computed, on what the others are taken to have added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fisopt.checked import is_int
from fisopt.errors import OptionError, shown
from fisopt.passes.caching.cached_step import Cache, Computed, Look, Reused
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import ALL


@dataclass(frozen=True)
class StepCache(Cache):
    """At some denoising steps, reuse what blocks added to the video at the last step that ran them.

    Before and after, at a step that reuses (the first block is computed)::

        %h1 = block_a(%h0, ...)
        %h2 = block_a(%h1, ...)
        ...
        %hn = block_a(%hm, ...)

        %h1 = block_a(%h0, ...)
        %hn = aten::add(%h1, %state)

    Every guidance branch has its own state and decides for itself; a new generation starts without
    state. The pass runs last in a list of passes, so that it caches what the sparse, reduced or
    tiled blocks add.

    Attributes:
        threshold: reuse if the update by the blocks before the first of ``blocks`` has changed by
            at most this share since the last step that computed all blocks: mean absolute change
            over mean absolute value. Each call decides this once these blocks have run. None: reuse
            at every one of ``steps``.
        order: 0 reuses the last value; 1 extrapolates linearly from the last two values.
        max_run: most steps in a row that may reuse; None is no limit.
        blocks: the blocks to skip at reusing steps, see `BlockPass`; the others run at every step.
        steps: the steps that may reuse, see `BlockPass`; without a threshold all of them do, by
            default every second step. The first step of a generation never reuses.

    Source: FirstBlockCache is ``StepCache(threshold)``, DBCache with Fn and Bn blocks
    ``StepCache(threshold, blocks="Fn:-Bn")``, its warm-up ``steps="8:"``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        threshold: object = self.threshold
        if threshold is not None and (
            isinstance(threshold, bool)
            or not isinstance(threshold, (int, float))
            or not 0 <= threshold < math.inf
        ):
            raise OptionError(
                "StepCache: threshold is a share of change and must be a number of at least 0, or "
                f"None for a cache that follows steps, got {shown(threshold)}"
            )
        if not is_int(self.order, 0) or self.order > 1:
            raise OptionError(f"StepCache: order must be 0 or 1, got {shown(self.order)}")
        if self.max_run is not None and not is_int(self.max_run, 1):
            raise OptionError(
                "StepCache: max_run must be an int of at least 1, or None for no limit, got "
                f"{shown(self.max_run)}"
            )
        if self.max_run is not None and threshold is None:
            raise OptionError(
                "StepCache: max_run is for a cache with a threshold; without one, `steps` says how "
                f"many in a row reuse, got max_run={self.max_run}"
            )

    def active(self, step: Step) -> bool:
        """Whether a step may reuse; see `BlockPass.active`."""
        if self.threshold is None and self.steps == ALL:
            return step.index % 2 == 1
        return super().active(step)

    @property
    def stepwise(self) -> bool:
        """True: a step stores what a later one reuses."""
        return True

    def at(self, step: Step) -> Pass:
        """The pass for a step: it computes all blocks, reuses some, or measures first."""
        if step.index == 0 or not self.active(step):
            return Computed(self, first=bool(self.order) and step.index == 0)
        return Reused(self) if self.threshold is None else Look(self)

    def afresh(self) -> Pass:
        """Compute all blocks, because no earlier step left any state."""
        return Reused(self).afresh()

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite for a step that reuses."""
        Reused(self).run(rewriter)
