"""The report: what each pass did to the model, what it left alone and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fisopt.codegen.choose import Choice
from fisopt.codegen.placement import Held
from fisopt.counted import counted
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.cost import not_predicted, program_cost
from fisopt.rewrite.ops.attend_by import failures
from fisopt.rewrite.pass_manager import Applied
from fisopt.rewrite.program import Program

_CHANGES = 100
_RECAPTURED = "recaptured: "


@dataclass(frozen=True)
class Made:
    """One rewritten Program: a shape and the passes that were active.

    Attributes:
        layout: its token grid.
        passes: the passes in it, in order; empty for a dense step.
        applied: what each did.
        blocks: the graph of every video block, in execution order.
        density: FLOPs kept of the dense model's, in (0, 1].
        work: FLOPs of one call, see `Cost.work`.
        stages: distinct graphs that are compiled for it, beside those of earlier variants.
        choices: which implementation runs for what, and why.
        notes: what its capture could not follow.
        unknown: what the density does not count, None if it counts all.
        part: whether it runs a part of a call, and another Program the other.
    """

    layout: TokenLayout
    passes: tuple[str, ...]
    applied: tuple[Applied, ...]
    blocks: tuple[tuple[str, str], ...]
    density: float
    work: float
    stages: int
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: str | None = None
    part: bool = False

    @staticmethod
    def of(
        dense: Program,
        program: Program,
        applied: list[Applied],
        passes: tuple[str, ...],
        stages: int,
        choices: Sequence[Choice] = (),
    ) -> Made:
        """Describe a rewritten Program."""
        before, after = program_cost(dense), program_cost(program)
        work, unknown = after.work, not_predicted(before, after)
        kept = work / max(before.work, 1.0)
        blocks = tuple((b.path, str(b.call.target)) for b in program.blocks)
        held, ran = tuple(dict.fromkeys(choices)), tuple(applied)
        notes, grid = tuple(dense.source.notes), program.layout
        part = bool(program.unfinished or program.resumed)
        return Made(grid, passes, ran, blocks, kept, work, stages, held, notes, unknown, part)

    @property
    def failures(self) -> list[str]:
        """How chosen functions have failed since; torch runs in their place."""
        return [said for choice in self.choices for said in failures(choice.by)]

    def after(self, beginning: Made) -> Made:
        """What describes a call that a beginning and this rest of it have run."""
        kept, work = self.density + beginning.density, self.work + beginning.work
        return replace(self, density=kept, work=work, part=False)


@dataclass
class Report:
    """What `optimize` made of a model, one variant per shape and set of active passes.

    Attributes:
        model: the class of the model.
        backend: who compiles.
        variants: what is held, in the order in which it was made.
        dropped: how many variants have made room for others.
        changes: what was seen to change in the model, the newest last; the same change is one
            line.
        notes: what happened in generations, and how often.
        decisions: what was decided within calls, and how often.
        weights: what is counted of weights that stay on the host.
    """

    model: str
    backend: str
    variants: list[Made] = field(default_factory=list)
    dropped: int = 0
    changes: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    weights: Held = field(default_factory=Held)
    _times: Counter[str] = field(default_factory=Counter, repr=False)

    def recaptured(self, difference: str) -> None:
        """Say that the model is not in the state that it was captured in before."""
        line = f"{_RECAPTURED}{difference}"
        self._times[line] += 1
        others = [known for known in self.changes if known != line]
        self.changes = [*others[1 - _CHANGES :], line]
        self._times = Counter({known: self._times[known] for known in self.changes})

    @property
    def recaptures(self) -> dict[str, int]:
        """What was seen to change in the model, and how often."""
        return {line.removeprefix(_RECAPTURED): self._times[line] for line in self.changes}

    @property
    def fallbacks(self) -> dict[str, int]:
        """What runs otherwise than the passes say, and how often that was met."""
        skipped = Counter(
            f"{applied.name}: not applied to {where}"
            for variant in self.variants
            for applied in variant.applied
            for where in applied.result.skipped
        )
        failed = Counter(said for variant in self.variants for said in variant.failures)
        return {**skipped, **failed, **self.notes}

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.backend})"]
        for line in self.changes:
            count = self._times[line]
            lines.append(f"  {line}" + (f" ({count} times)" if count > 1 else ""))
        if self.dropped:
            dropped = counted(self.dropped, "variant")
            lines.append(f"  {dropped} evicted for newer ones (cache_size)")
        if self.weights.total:
            lines.append(f"  offload: {self.weights}")
        if not self.variants:
            lines.append("  nothing captured yet: shapes are captured at their first call")
        for variant in self.variants:
            whole = " of what is counted" if variant.unknown else ""
            predicted = f"predicted {1 / variant.density:.2f}x{whole}"
            lines.append(
                f"  {variant.layout} tokens, {' + '.join(variant.passes) or 'dense'}: "
                f"density {variant.density:.3f} (sparsity {1 - variant.density:.3f}) of the FLOPs, "
                f"{'a part of a call' if variant.part else predicted}, "
                + (counted(variant.stages, "graph") if variant.stages else "no graphs")
                + " compiled"
            )
            lines += [f"    {variant.unknown}"] if variant.unknown else []
            lines += [f"    capture: {note}" for note in variant.notes]
            for applied in variant.applied:
                lines += [f"    {applied.name}: {note}" for note in applied.result.notes]
                lines += [f"    {applied.name}: not applied to {s}" for s in applied.result.skipped]
            lines += [f"    lowering: {choice}" for choice in variant.choices]
            lines += [f"    {said}" for said in variant.failures]
        often = {**self.decisions, **self.notes}
        lines += [f"  {note}: {count} times" for note, count in often.items()]
        return "\n".join(lines)
