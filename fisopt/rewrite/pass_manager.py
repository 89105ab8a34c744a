"""The pass manager: run passes by stage, verify after each, name the one that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fisopt.checked import Checked
from fisopt.concurrency import tracing
from fisopt.errors import OptionTypeError, PassError, PreconditionError, shown
from fisopt.rewrite.pass_base import STAGES, Pass, PassResult
from fisopt.rewrite.program import Program, check_program
from fisopt.rewrite.variants import Variant, names_of
from fisopt.rewrite.verify import verify


@dataclass(frozen=True)
class Applied:
    """One line of a report: a pass and what it did."""

    name: str
    result: PassResult


@dataclass(frozen=True)
class PassManager(metaclass=Checked):
    """Run passes over a Program.

    Attributes:
        passes: the passes; they run in this order, except that passes of an earlier stage run
            first: a step cache and passes that divide the Program among ranks run last.
        strict: raise if a pass cannot be applied everywhere.
        stop_after: run only the first n passes (to bisect a wrong result).
        on_pass: called with the pass and its result after each.
        names: a name for each pass; by default its own name, numbered if several share it.
    """

    passes: Sequence[Pass]
    strict: bool = True
    stop_after: int | None = None
    on_pass: Callable[[Pass, PassResult], None] | None = None
    names: Sequence[str] | None = None
    applied: list[Applied] = field(default_factory=list, compare=False)

    @staticmethod
    def of(variant: Variant, *, strict: bool = True) -> PassManager:
        """Make the PassManager for the passes of a variant."""
        return PassManager(variant.passes, strict, names=variant.names)

    def __post_init__(self) -> None:
        passes: object = self.passes
        if not isinstance(passes, Sequence) or any(not isinstance(p, Pass) for p in passes):
            raise OptionTypeError(
                f"PassManager: passes must be a list of Pass objects, got {shown(passes)}"
            )

    def run(self, program: Program) -> Program:
        """Apply the passes.

        Raises:
            PassError: a pass raised, failed, or returned an invalid Program; the error names it.
            OptionTypeError: the argument is not a Program.
        """
        check_program(program)
        names = names_of(self.passes) if self.names is None else self.names
        for name, step in _by_stage(names, self.passes)[: self.stop_after]:
            try:
                with tracing():
                    result = step(program, strict=self.strict, name=name)
                    verify(result.program)
            except PassError:
                raise
            except Exception as error:
                raise PassError(f"{type(error).__name__}: {error}", pass_name=name) from error
            self.applied.append(Applied(name, result))
            if self.on_pass is not None:
                self.on_pass(step, result)
            program = result.program
        return program


def _by_stage(names: Sequence[str], passes: Sequence[Pass]) -> list[tuple[str, Pass]]:
    """Order passes by stage, so that any order in the list means the same.

    Passes of one stage keep their order, and a pass without a stage keeps its place; a step cache,
    after which blocks are no longer there to be counted, follows all of them, and what divides the
    Program among ranks follows that.

    Raises:
        PreconditionError: a pass that keeps its place stands after one that must be last.
    """
    pairs = list(zip(names, passes, strict=True))
    stages = [each.stage for _, each in pairs]
    first = next((i for i, s in enumerate(stages) if s in ("branches", "ranks")), len(stages))
    if None in stages[first:]:
        name = names[stages.index(None, first)]
        raise PreconditionError(
            f"it stands after {names[first]}, which divides the Program among ranks and comes "
            f"last; put it before {names[first]}",
            pass_name=name,
        )
    last = [pair for stage in STAGES[2:] for pair in pairs if pair[1].stage == stage]
    pairs = [pair for pair in pairs if pair not in last]
    ordered = iter([pair for stage in STAGES for pair in pairs if pair[1].stage == stage])
    return [*(pair if pair[1].stage is None else next(ordered) for pair in pairs), *last]
