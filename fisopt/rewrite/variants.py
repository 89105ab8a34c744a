"""Variants: which passes run at which denoising step, said once for running, costing, exporting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fisopt.checked import is_int
from fisopt.errors import OptionError, ScheduleError, shown
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.measured import Measured, Read, UndecidedError, only_in_a_run
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.selection import ALL


@dataclass(frozen=True)
class Variant:
    """The passes that run at a step; equal variants share one Program.

    Attributes:
        passes: what runs, in the order of the list; empty at a dense step.
        names: for each the name of the pass of the list that it stands for.
    """

    passes: tuple[Pass, ...] = ()
    names: tuple[str, ...] = ()

    def afresh(self, missing: Collection[str] | None = None) -> Variant:
        """What runs where the state that some passes load is not there; None means all of them."""
        return replace(
            self,
            passes=tuple(
                p.afresh() if missing is None or name in missing else p
                for name, p in zip(self.names, self.passes, strict=True)
            ),
        )

    def then(self, name: str, step: Step, read: Read) -> Variant:
        """What runs the rest of a call whose beginning a pass has ended.

        Args:
            name: of the pass.
            step: the step.
            read: what it sees as ``step.measured``.
        """
        seen = replace(step, measured=Measured(name, read))
        pairs = zip(self.names, self.passes, strict=True)
        return replace(self, passes=tuple(p.then(seen) if n == name else p for n, p in pairs))

    @property
    def undecided(self) -> tuple[str, ...]:
        """The names of the passes that decide within a call, by what its beginning measures."""
        pairs = zip(self.names, self.passes, strict=True)
        return tuple(name for name, p in pairs if type(p).then is not Pass.then)

    def differs(self, other: Variant) -> tuple[str, ...]:
        """The names of passes that another variant of the same names has in another form."""
        pairs = zip(self.names, self.passes, other.passes, strict=True)
        return tuple(name for name, one, two in pairs if one != two)


@dataclass(frozen=True)
class Variants:
    """What runs in a generation.

    Attributes:
        whole: every pass as it is listed: what runs where no pass differs between steps.
        steps: the number of denoising steps, None where it is not known or does not matter.
    """

    whole: Variant
    steps: int | None = None

    @staticmethod
    def of(passes: Sequence[Pass], steps: int | None = None) -> Variants:
        """The variants of a list of passes in a generation of some number of steps.

        Raises:
            OptionError: a pass has an `at` that nothing would ask, or a name with a slash.
            ScheduleError: the number of steps is less than one.
        """
        if steps is not None and not is_int(steps, 1):
            raise ScheduleError(f"num_steps must be at least 1, got {shown(steps)}")
        for each in passes:
            if not each.stepwise and _unasked(type(each)):
                raise OptionError(
                    f"{each.name} defines `at` and no `stepwise`, so fisopt would never call it; "
                    "define `stepwise` to say whether its steps differ"
                )
        return Variants(Variant(tuple(passes), names_of(passes)), steps)

    @cached_property
    def fullest(self) -> Variant:
        """Every pass that may run at one step: of two that edit frames at other steps the first.

        It stands for a generation where one Program must, such as before its first step.
        """
        taken: list[tuple[Pass, str]] = []
        for each, name in zip(self.whole.passes, self.whole.names, strict=True):
            if not any(_at_other_steps(each, other) for other, _ in taken):
                taken.append((each, name))
        return Variant(tuple(p for p, _ in taken), tuple(name for _, name in taken))

    @cached_property
    def stepwise(self) -> tuple[str, ...]:
        """The names of the passes that differ between steps."""
        pairs = zip(self.whole.names, self.whole.passes, strict=True)
        return tuple(name for name, p in pairs if p.stepwise)

    def at(self, step: Step, read: Read | None = None) -> Variant:
        """What runs at a step.

        Args:
            step: the step.
            read: what passes see as ``step.measured``; None leaves what the step has.

        Raises:
            ScheduleError: the step lies before the first one, or a pass refuses it.
        """
        if step.index < 0:
            raise ScheduleError(f"step {step.index} does not exist; the first one is 0")
        active = []
        for name, each in zip(self.whole.names, self.whole.passes, strict=True):
            seen = step if read is None else replace(step, measured=Measured(name, read))
            if (now := each.at(seen)) is not None:
                active.append((now, name))
        return Variant(tuple(p for p, _ in active), tuple(name for _, name in active))

    @cached_property
    def schedule(self) -> tuple[Variant, ...]:
        """The variant of every step, one for all of them where they do not differ.

        Raises:
            ScheduleError: steps differ, and their number is not known or a pass decides by what
                it measures.
        """
        if not self.stepwise:
            return (self.whole,)
        if self.steps is None:
            raise ScheduleError(
                f"{', '.join(self.stepwise)} differs between denoising steps, and their number is "
                "not known: give num_steps="
            )
        found = tuple(self.at(Step(i, self.steps), only_in_a_run) for i in range(self.steps))
        if undecided := dict.fromkeys(name for v in found for name in v.undecided):
            raise UndecidedError(
                f"{', '.join(undecided)} decides at each step by its measurements, so what runs "
                "at a step is known only in a running generation"
            )
        return found

    @property
    def distinct(self) -> tuple[Variant, ...]:
        """Each variant once: those of the schedule, then those that run afresh in their place."""
        return tuple(dict.fromkeys([*self.schedule, *(v.afresh() for v in self.schedule)]))


def _unasked(cls: type[Pass]) -> bool:
    """Whether a class defines `at`, and `stepwise` is of a class above it."""
    first = {name: next(c for c in cls.__mro__ if name in vars(c)) for name in ("at", "stepwise")}
    return first["at"] is not first["stepwise"] and issubclass(first["at"], first["stepwise"])


def _at_other_steps(one: Pass, other: Pass) -> bool:
    """Whether two passes that decide the same thing say other steps."""
    if one.stage is None or one.stage != other.stage:
        return False
    if not isinstance(one, BlockPass) or not isinstance(other, BlockPass):
        return False
    return ALL not in (one.steps, other.steps) and one.steps != other.steps


def names_of(passes: Sequence[Pass]) -> tuple[str, ...]:
    """A name for each pass of a list: its own, from the second of that name on with a number."""
    seen: Counter[str] = Counter()
    names = []
    for name in (p.name for p in passes):
        if "/" in name:
            raise OptionError(
                f"a pass is named {name!r}; leave out the slash, which ends a pass's name in "
                "names of state"
            )
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return tuple(names)
