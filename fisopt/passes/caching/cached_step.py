"""What a step cache does at one denoising step: compute and keep, reuse, or look and decide."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from fisopt.errors import PreconditionError
from fisopt.passes.caching.bypass import Bypass
from fisopt.passes.caching.kept import Kept
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.pass_base import Pass, Stage, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import Selected

aten = torch.ops.aten


@dataclass(frozen=True)
class Cache(BlockPass):
    """What is said of a step cache; see `fisopt.StepCache`."""

    stage: ClassVar[Stage] = "steps"

    threshold: float | None = None
    order: int = 0
    max_run: int | None = None
    blocks: Selected = field(default="1:", kw_only=True)

    def requires(self, program: Program) -> None:
        """Check the blocks against those of the model, and that some run before they decide."""
        chosen = self.chosen(program)
        if self.threshold is not None and chosen[0].index == 0:
            raise PreconditionError(
                f"blocks={self.blocks!r} with a threshold: the blocks before the first of them "
                "decide about reuse, and there are none; leave out the first block, as in "
                "blocks='1:'",
                pass_name=self.name,
            )


@dataclass(frozen=True)
class CachedStep(Pass):
    """One step of a cache.

    Attributes:
        cache: the cache.
        resumed: whether the blocks before the first cached one have run in this call.
    """

    stage: ClassVar[Stage] = "steps"

    cache: Cache
    resumed: bool = False

    @property
    def name(self) -> str:
        """The name of the pass whose step this is."""
        return self.cache.name

    @property
    def stepwise(self) -> bool:
        """True: what it keeps or takes belongs to a step."""
        return True

    def afresh(self) -> Pass:
        """Compute what no earlier step of this generation has left."""
        return Computed(self.cache, first=self.cache.order > 0)

    def requires(self, program: Program) -> None:
        """Check the blocks."""
        self.cache.requires(program)

    def run(self, rewriter: Rewriter) -> None:
        """Find the blocks that can be passed by, and do what is to be done at the step."""
        every = len(rewriter.program.blocks)
        bypass = Bypass(rewriter, self.cache.chosen(rewriter.program))
        for block, reason in bypass.refused:
            rewriter.skip(block.path, f"{reason}, so no step can reuse what it adds")
        if not bypass.blocks:
            rewriter.note(f"dense: none of {every} blocks can be reused")
            return
        begin = bypass.blocks[0].call
        known = [n for n in begin.args if isinstance(n, fx.Node)]
        with rewriter.before(begin):
            now = None if self.cache.threshold is None else _update(rewriter, bypass.blocks[0])
            known += [] if now is None else [now]
            done = self.step(rewriter, bypass, known, now)
        if self.resumed:
            rewriter.resume(*known)
        rewriter.note(f"{len(bypass.blocks)} of {every} blocks {done}")

    @abstractmethod
    def step(
        self, rewriter: Rewriter, bypass: Bypass, known: Sequence[fx.Node], now: fx.Node | None
    ) -> str:
        """Do what is to be done, from before the first cached block on.

        Args:
            rewriter: the rewriter.
            bypass: the way around the cached blocks.
            known: what is known before the first of them.
            now: what the blocks before it add, where that decides.

        Returns:
            What became of the cached blocks, for the report.
        """

    def kept(self, rewriter: Rewriter, first: bool = False) -> Kept:
        """What the cache keeps."""
        return Kept(rewriter, self.cache.order, self.cache.max_run is not None, first)


@dataclass(frozen=True)
class Computed(CachedStep):
    """Every block is computed, and what the cached ones add is kept.

    Attributes:
        first: whether no earlier step has left what the next one would be forecast from.
    """

    first: bool = False

    def step(
        self, rewriter: Rewriter, bypass: Bypass, known: Sequence[fx.Node], now: fx.Node | None
    ) -> str:
        """Keep what the blocks add."""
        kept, leaving = self.kept(rewriter, self.first), bypass.leaving
        past = kept.passed_by(leaving[0], computes=True)
        if now is not None:
            rewriter.store("reference", now)
        for i, node in enumerate(leaving):
            with rewriter.after(node):
                added = rewriter.call(aten.sub.Tensor, node, bypass.before(node))
                kept.keep(i, added, past)
            bypass.settle(node, node)
        return "computed, what they add is stored"


@dataclass(frozen=True)
class Reused(CachedStep):
    """The cached blocks do not run; what they added is taken from an earlier step."""

    def step(
        self, rewriter: Rewriter, bypass: Bypass, known: Sequence[fx.Node], now: fx.Node | None
    ) -> str:
        """Add what was kept, in the place of the blocks."""
        kept, leaving = self.kept(rewriter), bypass.leaving
        past = kept.passed_by(leaving[0], computes=False)
        if now is not None:
            rewriter.store("reference", kept.like("reference", now))
        for i, node in enumerate(leaving):
            with rewriter.after(node):
                added = kept.reused(i, node, past)
                whole = rewriter.call(aten.add.Tensor, bypass.before(node), added)
                rewriter.replace_uses(node, whole)
            bypass.settle(node, whole)
        rewriter.forget([block.call for block in bypass.blocks])
        return "reused"


@dataclass(frozen=True)
class Look(CachedStep):
    """The blocks before the first cached one run, and what they add decides about the others."""

    def step(
        self, rewriter: Rewriter, bypass: Bypass, known: Sequence[fx.Node], now: fx.Node | None
    ) -> str:
        """Measure the change of what the first blocks add, and stop there."""
        assert now is not None
        kept = self.kept(rewriter)
        moved = kept.change(now, kept.like("reference", now))
        rewriter.stop(*known)
        rewriter.measure("moved", moved)
        if self.cache.max_run is not None:
            rewriter.measure("run", kept.count(now))
        return f"run where the change is more than {self.cache.threshold:g}"

    def then(self, step: Step) -> Pass:
        """Reuse where little has changed and not too often in a row."""
        cache = self.cache
        assert cache.threshold is not None
        tired = cache.max_run is not None and step.measured["run"] >= cache.max_run
        if step.measured["moved"] <= cache.threshold and not tired:
            return Reused(cache, resumed=True)
        return Computed(cache, resumed=True)


def _update(rewriter: Rewriter, begin: Block) -> fx.Node:
    """What the blocks before a block add to the stream of the video that enters it.

    Raises:
        PreconditionError: there is no such stream, or they do more than add to it.
    """
    before = Bypass(rewriter, rewriter.program.blocks[: begin.index])
    streams = [n for n in map(begin.source, begin.results) if n is not None]
    stream = begin.passed(begin.stream or streams[0])
    start = before.around(stream)
    if before.refused or start is stream or value_key(start) != value_key(stream):
        where, reason = before.refused[0] if before.refused else (begin, "nothing is added")
        raise PreconditionError(
            f"the blocks before it decide by what they add, but {reason}; start at a later block "
            "(blocks=), or give the steps that reuse instead of a threshold (steps=)",
            pass_name=rewriter.pass_name,
            node=where.path,
        )
    return rewriter.call(aten.sub.Tensor, stream, start)
