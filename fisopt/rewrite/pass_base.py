"""The pass contract: a named transformation, valid Program in, valid Program out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import nn

from fisopt.checked import Checked
from fisopt.errors import PassError, PreconditionError, ScheduleError
from fisopt.rewrite.analysis.dropout import active_dropout
from fisopt.rewrite.program import Program, check_program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import among, needs_count
from fisopt.spec import ModelSpec

Stage = Literal["frames", "attention", "steps", "outputs", "branches", "ranks"]
STAGES: tuple[Stage, ...] = ("frames", "attention", "steps", "outputs", "branches", "ranks")
"""What a pass decides, in the order in which it must be decided."""


@dataclass(frozen=True)
class Step:
    """One denoising step of a run.

    A scheduler that calls the model twice a step has a step for each call.

    Attributes:
        index: its place in the run, from 0.
        count: the number of steps of the run, where it is known.
        skipped: steps of the scheduler that come before the run: it starts between noise and
            video, as under ``strength``.
        measured: in a running generation, the numbers that this guidance branch measured last, by
            name: those of the pass itself as it names them, those of others as "Pass/name".
    """

    index: int
    count: int | None = None
    skipped: int = 0
    measured: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def from_noise(self) -> Step:
        """The same step counted from pure noise."""
        count = None if self.count is None else self.count + self.skipped
        return replace(self, index=self.index + self.skipped, count=count, skipped=0)

    def among(self, steps: str, name: str) -> bool:
        """Whether this is one of the steps that are selected for a pass; see `BlockPass.steps`.

        Raises:
            ScheduleError: that depends on the number of steps, which is not known.
        """
        if self.count is None and needs_count(steps):
            raise ScheduleError(
                f"{name}: steps={steps!r} depends on the number of steps, "
                "which is not known; run the model inside "
                "`with optimized.generation(num_steps=...):`, or from a pipeline that holds it "
                "beside a scheduler that knows"
            )
        return among(steps, self.index, self.count)


@dataclass(frozen=True)
class PassResult:
    """What a pass made of a Program.

    Attributes:
        program: the new Program; the one that was given is unchanged.
        modified: whether anything was edited, as the Rewriter counted.
        notes: what was applied, one line each.
        skipped: what was not applied and why, one line each, the block first.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class Pass(metaclass=Checked):
    """One named transformation of a Program; options are the fields of a frozen dataclass.

    A subclass overrides `run` and edits through the Rewriter only.  Equal passes (same class,
    same options) are one: their results are shared.

    Attributes:
        stage: what the pass decides, where its place among other passes follows from it: the
            frames that a block computes come before the tokens that its attention sees, then come
            which blocks a step computes at all and what is returned of them, and what each rank
            computes of it comes last: which guidance branches, then which tokens.
        differentiable: whether a Program can be trained through after it; False is an error then.
    """

    stage: ClassVar[Stage | None] = None
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """How reports and errors call the pass."""
        return type(self).__name__

    def prepare(self, model: nn.Module, spec: ModelSpec | None, passes: Sequence[Pass]) -> None:
        """Change a model before `fisopt.optimize` captures it; most passes do nothing.

        Args:
            model: the model.
            spec: its blocks and grid, None where its first call tells them.
            passes: all passes that go with this one.
        """

    def __call__(
        self, program: Program, *, strict: bool = True, name: str | None = None
    ) -> PassResult:
        """Apply the pass to a copy of a Program.

        Args:
            program: the Program; it stays as it is.
            strict: whether what the pass cannot be applied to is an error.
            name: how to call the pass and its state where several have its name.

        Raises:
            PreconditionError: the pass does not apply, or with ``strict`` not everywhere.
        """
        check_program(program)
        if program.mesh and (self.stage != "ranks" or program.mesh[-1].of == "tokens"):
            raise PreconditionError(
                f"the Program is divided among {program.mesh[-1].count} ranks, and what follows "
                "would see the part of one; apply this pass first",
                pass_name=self.name,
            )
        needs_axes = self.stage in ("frames", "attention", "ranks")
        if needs_axes and (why := program.source.followed.why_fixed):
            reason = f"the model is captured at {program.layout.frames} latent frames alone: {why}"
            if strict:
                advice = "a second number is needed to tell them apart: see ModelSpec.resized"
                raise PreconditionError(f"{reason}\n{advice}", pass_name=self.name)
            return PassResult(program, False, (), (reason,))
        self._refuse_dropout(program)
        self.requires(program)
        rewriter = Rewriter(program.copy(), name or self.name)
        self.run(rewriter)
        skipped = tuple(f"{where}: {reason}" for where, reason in rewriter.skipped)
        if skipped and strict:
            places: dict[str, list[str]] = {}
            for where, reason in rewriter.skipped:
                places.setdefault(reason, []).append(where)
            refused = "; ".join(f"{', '.join(p)}: {reason}" for reason, p in places.items())
            raise PreconditionError(
                f"could not be applied to {refused} (strict=False leaves it dense)",
                pass_name=self.name,
            )
        if not rewriter.changed:
            return PassResult(program, False, tuple(rewriter.notes), skipped)
        rewriter.erase_dead()
        rewriter.program.graph_module.recompile()
        result = PassResult(rewriter.program, True, tuple(rewriter.notes), skipped)
        self.ensures(result.program)
        return result

    def _refuse_dropout(self, program: Program) -> None:
        graphs = {program.graph: "the model", **{b.body.graph: b.path for b in program.blocks}}
        for graph, where in graphs.items():
            if (found := active_dropout(graph)) is not None:
                node, probability = found
                what = "its attention" if "attention" in str(node.target) else str(node.target)
                raise PreconditionError(
                    f"{what} has dropout ({probability}), so every run draws other numbers and "
                    "nothing can be left out of it; call model.eval() if a layer is in training "
                    "mode, as those of adapters may be, and pass a probability of 0 outside of "
                    "training (`dropout_p=self.p if self.training else 0.0`)",
                    pass_name=self.name,
                    node=where,
                )

    @abstractmethod
    def run(self, rewriter: Rewriter) -> None:
        """Edit ``rewriter.program`` through the rewriter."""

    def requires(self, program: Program) -> None:
        """Raise PreconditionError if the pass cannot run on this Program."""

    def ensures(self, program: Program) -> None:
        """Raise PostconditionError if the result breaks the pass's promise."""

    @property
    def stepwise(self) -> bool:
        """Whether `at` answers differently at different steps."""
        return False

    def at(self, step: Step) -> Pass | None:
        """The pass to run at a denoising step: itself, another, or none (that step is dense).

        It may decide by what the branch has measured, see `Step.measured`; then no schedule is
        known before a run, and what needs one, such as an export, refuses the pass.
        """
        del step
        return self

    def then(self, step: Step) -> Pass:
        """The pass that runs the rest of a call whose beginning this one has ended.

        A pass whose Programs end early (`Rewriter.stop`) defines it; ``step.measured`` has what
        was measured until there.
        """
        raise PassError(
            "it ends the Program (Rewriter.stop) and has no `then`, which says what runs the rest",
            pass_name=self.name,
        )

    def afresh(self) -> Pass:
        """The pass to run instead where the state that it loads is not there."""
        return self
