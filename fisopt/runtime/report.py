"""The report: what each pass did to the model, what it left alone and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fisopt.codegen.choose import Choice
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.pass_manager import Applied
from fisopt.rewrite.program import Program

_CHANGES = 100


@dataclass(frozen=True)
class Made:
    """One rewritten Program: a shape and the passes that were active.

    Attributes:
        layout: its token grid.
        passes: the passes in it, in order; empty for a dense step.
        applied: what each did.
        blocks: the graph of every video block, in execution order.
        density: FLOPs kept of the dense model's, in (0, 1].
        stages: distinct graphs that are compiled for it, beside those of earlier variants.
        choices: which implementation runs for what, and why.
        notes: what its capture could not follow.
        part: whether it runs a part of a call, and another Program the other.
    """

    layout: TokenLayout
    passes: tuple[str, ...]
    applied: tuple[Applied, ...]
    blocks: tuple[tuple[str, str], ...]
    density: float
    stages: int
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
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
        kept = program_cost(program).work / max(program_cost(dense).work, 1.0)
        blocks = tuple((b.path, str(b.call.target)) for b in program.blocks)
        held = tuple(dict.fromkeys(choices))
        notes = tuple(dense.source.notes)
        part = bool(program.unfinished or program.resumed)
        return Made(program.layout, passes, tuple(applied), blocks, kept, stages, held, notes, part)


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
    """

    model: str
    backend: str
    variants: list[Made] = field(default_factory=list)
    dropped: int = 0
    changes: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    _times: Counter[str] = field(default_factory=Counter, repr=False)

    def recaptured(self, difference: str) -> None:
        """Say that the model is not in the state that it was captured in before."""
        line = f"recaptured: {difference}"
        self._times[line] += 1
        others = [known for known in self.changes if known != line]
        self.changes = [*others[1 - _CHANGES :], line]
        self._times = Counter({known: self._times[known] for known in self.changes})

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.backend})"]
        for line in self.changes:
            count = self._times[line]
            lines.append(f"  {line}" + (f" ({count} times)" if count > 1 else ""))
        if self.dropped:
            lines.append(f"  {self.dropped} variants made room for newer ones (cache_size)")
        if not self.variants:
            lines.append("  nothing captured yet: shapes are captured at their first call")
        for variant in self.variants:
            predicted = f"predicted {1 / variant.density:.2f}x"
            lines.append(
                f"  {variant.layout} tokens, {' + '.join(variant.passes) or 'dense'}: "
                f"density {variant.density:.3f} (sparsity {1 - variant.density:.3f}) of the FLOPs, "
                f"{'a part of a call' if variant.part else predicted}, "
                f"{variant.stages or 'no'} graphs compiled"
            )
            lines += [f"    capture: {note}" for note in variant.notes]
            for applied in variant.applied:
                lines += [f"    {applied.name}: {note}" for note in applied.result.notes]
                lines += [f"    {applied.name}: not applied to {s}" for s in applied.result.skipped]
            lines += [f"    lowering: {choice}" for choice in variant.choices]
        lines += [f"  {note}: {count} times" for note, count in self.notes.items()]
        return "\n".join(lines)
