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
"""What a pass decides, in the order in which passes must decide."""


@dataclass(frozen=True)
class Step:
    """One denoising step of a run.

    If a scheduler calls the model twice per step, each call counts as a step.

    Attributes:
        index: its position in the run, from 0.
        count: the number of steps of the run, if known.
        skipped: number of scheduler steps before the run, if it starts between noise and video, as
            under ``strength``.
        measured: in a running generation, the newest measurements of this guidance branch, by name:
            the pass's own under its names, those of other passes as "Pass/name".
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
        """Whether a selection of steps includes this one; see `BlockPass.steps`.

        Raises:
            ScheduleError: the answer depends on the number of steps, which is unknown.
        """
        if self.count is None and needs_count(steps):
            raise ScheduleError(
                f"{name}: steps={steps!r} depends on the number of steps, which is not known; run "
                "the model inside `with optimized.generation(num_steps=...):`, or from a "
                "pipeline whose scheduler knows it"
            )
        return among(steps, self.index, self.count)


@dataclass(frozen=True)
class PassResult:
    """The result of a pass on a Program.

    Attributes:
        program: the new Program; the input Program is unchanged.
        modified: whether the Rewriter edited anything.
        notes: what the pass applied, one line each.
        skipped: what the pass could not apply and why, one line each, the block first.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class Pass(metaclass=Checked):
    """One named transformation of a Program; options are the fields of a frozen dataclass.

    A subclass overrides `run` and edits through the Rewriter only. Equal passes (same class, same
    options) share their results.

    Attributes:
        stage: what the pass decides; this sets its position among other passes. First come the
            frames that a block computes, then the tokens that its attention sees, then which blocks
            a step computes and what is returned of them. What each rank computes comes last: which
            guidance branches, then which tokens.
        differentiable: whether gradients can flow through a Program after this pass; if False,
            training with the pass raises.
    """

    stage: ClassVar[Stage | None] = None
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The pass's name in reports and errors."""
        return type(self).__name__

    @property
    def changes_model(self) -> bool:
        """Whether `prepare` does something, which cannot be undone."""
        return False

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
                f"the Program is divided among {program.mesh[-1].count} ranks, so this pass would "
                "see only one rank's part; apply this pass first",
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
                    "mode, as those of adapters may be, and pass a probability of 0 when not "
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
        """Whether `at` returns different passes at different steps."""
        return False

    def at(self, step: Step) -> Pass | None:
        """The pass to run at a denoising step: itself, another, or none (that step is dense).

        It may decide by the branch's measurements, see `Step.measured`. The schedule is then
        unknown before a run, so whatever needs one, such as `fisopt.export`, raises.
        """
        del step
        return self

    def then(self, step: Step) -> Pass:
        """The pass that runs the rest of a call, after this pass has ended its first part.

        A pass whose Programs end early (`Rewriter.stop`) must define it; ``step.measured`` has the
        measurements up to that point.
        """
        raise PassError(
            "it ends the Program (Rewriter.stop) and has no `then`, which says what runs the rest",
            pass_name=self.name,
        )

    def afresh(self) -> Pass:
        """The pass to run instead if the state that this pass loads does not exist."""
        return self
