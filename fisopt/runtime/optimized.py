"""The optimised module: takes the original's place in a pipeline and shares its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import nn

from fisopt.codegen.choose import Choice
from fisopt.codegen.compile import Backend, Runnable, compile_program
from fisopt.errors import InputError, ScheduleError
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.capture import Dynamic, capture
from fisopt.rewrite.inputs import Inputs, bind, bind_example
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program, pass_of
from fisopt.runtime.branches import conditioning
from fisopt.runtime.generation import Generation
from fisopt.runtime.layers import refusal
from fisopt.runtime.progress import warm_up
from fisopt.runtime.report import Report, Variant
from fisopt.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class _Plan:
    """What runs for one shape and one set of active passes, and what was compiled for it."""

    program: Program
    run: Runnable
    stages: tuple[Runnable, ...] = ()

    def missing(self, held: Mapping[str, torch.Tensor]) -> set[str]:
        """The passes that load state which is not there in the shape that they take."""
        if not self.program.loads:
            return set()
        holders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        taken = holders[len(holders) - len(self.program.loads) :]
        return {
            pass_of(name)
            for name, node in zip(self.program.loads, taken, strict=True)
            if name not in held or held[name].shape != node.meta["val"].shape
        }


class OptimizedModule(nn.Module):
    """A model that runs rewritten Programs; made by `fisopt.optimize`.

    It has the original's forward signature and return type and passes everything else
    (``config``, ``dtype``, ``device``, ``state_dict``, ``cache_context``, ...) on to it.  A new
    shape is captured, rewritten and compiled at its first call.  Calls run without gradients.

    Attributes:
        original: the model that was given, unchanged.
        passes: the passes, in order.
        report: what each pass did to which block.
    """

    original: nn.Module
    passes: tuple[Pass, ...]
    report: Report
    captures: dict[Any, Program]
    _generation: Generation

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Pass],
        spec: ModelSpec,
        backend: Backend,
        strict: bool,
        scheduler: Callable[[], Any] | None = None,
        captures: dict[Any, Program] | None = None,
    ) -> None:
        super().__init__()
        held = self.__dict__
        held["original"] = model
        held["passes"] = tuple(passes)
        held["_generation"] = Generation(scheduler)
        held["report"] = Report(type(model).__name__, backend, notes=self._generation.notes)
        held["_spec"], held["_backend"], held["_strict"] = spec, backend, strict
        held["captures"] = {} if captures is None else captures
        held["_plans"], held["_compiled"], held["_lock"] = {}, {}, RLock()
        held["_watchers"] = []
        held["training"] = False
        held["_placed"] = _placed(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and return value are the original's."""
        inputs = Inputs.of(bind(self.original, args, kwargs))
        active = self._active(inputs)
        plan, held = self.plan(inputs, active), {}
        if plan.program.loads or plan.program.stores or self._generation.holds:
            held = self._generation.held(
                inputs.key(), lambda: conditioning(inputs, plan.program.framed)
            )
        if missing := plan.missing(held):
            plan = self._afresh(inputs, active, missing, held)
        plan.program.check(inputs)
        state = (held[name] for name in plan.program.loads)
        with torch.no_grad():
            values = plan.run(*(x for _, x in inputs.tensors()), *state)
        returned = plan.program.split(values)
        self._measure(inputs, returned.gauges)
        plan.program.write_back(inputs, returned)
        self._generation.keep(held, returned.state)
        return returned.output

    def _afresh(
        self,
        inputs: Inputs,
        active: tuple[Pass, ...],
        missing: set[str],
        held: Mapping[str, torch.Tensor],
    ) -> _Plan:
        """What runs where state is missing: the passes that load it make it again."""
        for these in (missing, {p.name for p in active}):
            passes = tuple(p.afresh() if p.name in these else p for p in active)
            plan = self.plan(inputs, passes)
            if not plan.missing(held):
                place = self._generation.place(inputs.kwargs())
                for now, then in zip(passes, active, strict=True):
                    if now != then:
                        self._generation.note(f"{then.name} ran afresh at {place}")
                return plan
        raise ScheduleError(
            f"{', '.join(sorted(plan.missing(held)))}: takes state that no earlier step has left; "
            "let its `afresh` return a pass that makes it"
        )

    def _measure(self, inputs: Inputs, gauges: Mapping[str, torch.Tensor]) -> None:
        """Refuse measurements that are not finite, with one look at the device; show the rest."""
        if not gauges:
            return
        finite = torch.stack([g.isfinite().all() for g in gauges.values()]).tolist()
        if not all(finite):
            place = self._generation.place(inputs.kwargs())
            raise InputError(
                f"{list(gauges)[finite.index(False)]} at {place}: the features hold NaN or "
                "infinity, so nothing can be matched; check the weights, the inputs and the dtype"
            )
        for watcher in self._watchers:
            watcher(gauges)

    @contextmanager
    def watch(self, watcher: Callable[[Mapping[str, torch.Tensor]], None]) -> Iterator[None]:
        """Inside, call ``watcher`` with the measurements of every forward call, by name."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def program(self, example_inputs: Mapping[str, Any], step: Step | None = None) -> Program:
        """The rewritten Program for inputs of some shapes, at a step (default: no dense step)."""
        inputs = bind_example(self.original, example_inputs)
        passes = self.passes if step is None else active_at(self.passes, step)
        return self.plan(inputs, passes).program

    def _active(self, inputs: Inputs) -> tuple[Pass, ...]:
        """The passes of the current step; passes that ignore the step need not know it."""
        if not any(p.stepwise for p in self.passes):
            return tuple(self.passes)
        return active_at(self.passes, self._generation.step(inputs.kwargs()))

    def plan(self, inputs: Inputs, passes: tuple[Pass, ...]) -> _Plan:
        """What runs for some inputs and active passes; made once per shape."""
        key = (inputs.key(), self._placed, passes)
        with self._lock:
            if key not in self._plans:
                self._plans[key] = self._make(inputs, passes)
        plan: _Plan = self._plans[key]
        return plan

    def rewritten(
        self, inputs: Inputs, passes: tuple[Pass, ...], *, general: bool = False
    ) -> Program:
        """The Program for some inputs and active passes, which is not compiled for it.

        Args:
            inputs: the inputs.
            passes: the active passes.
            general: make it from an export with every size open, so that Programs of different
                sizes correspond node for node.
        """
        plan: _Plan | None = self._plans.get((inputs.key(), self._placed, passes))
        if plan is not None and not general:
            return plan.program
        dense = self._capture(inputs, "all" if general else "frames")
        return PassManager(passes, strict=self._strict).run(dense)

    def _make(self, inputs: Inputs, passes: tuple[Pass, ...]) -> _Plan:
        dense = self._capture(inputs)
        manager = PassManager(passes, strict=self._strict)
        program = manager.run(dense)
        before = set(self._compiled)
        choices: list[Choice] = []
        run = compile_program(program, self._backend, self._compiled, choices)
        names = tuple(p.name for p in passes)
        stages = tuple(stage for key, stage in self._compiled.items() if key not in before)
        self.report.variants.append(
            Variant.of(dense, program, manager.applied, names, len(stages), choices)
        )
        return _Plan(program, run, stages)

    def _capture(self, inputs: Inputs, dynamic: Dynamic = "frames") -> Program:
        """The dense Program for some inputs; one export serves every shape it accepts."""
        form = tuple(
            (x.ndim, x.dtype, x.device) if isinstance(x, torch.Tensor) else type(x)
            for x in inputs.leaves
        )
        key = (inputs.structure, form, self._placed, dynamic)
        if key not in self.captures:
            self.captures[key] = capture(self.original, inputs.kwargs(), self._spec, dynamic)
        captured: Program = self.captures[key]
        return captured.at(inputs)

    @contextmanager
    def cache_context(self, name: str, **said: Any) -> Iterator[None]:
        """One guidance branch's forward call, as diffusers pipelines announce it."""
        with ExitStack() as stack:
            theirs = getattr(self.original, "cache_context", None)
            if theirs is not None:
                stack.enter_context(theirs(name, **said))
            stack.enter_context(self._generation.context(name, **said))
            yield

    @property
    def spec(self) -> ModelSpec:
        """Where the blocks of the original are, and its token grid."""
        spec: ModelSpec = self._spec
        return spec

    @property
    def last_inputs(self) -> Inputs | None:
        """The inputs of the newest shapes that it was prepared for, None if there are none."""
        plans: list[_Plan] = list(self._plans.values())
        return plans[-1].program.inputs if plans else None

    @property
    def branch(self) -> str:
        """The guidance branch that is being run, as the pipeline names it."""
        return self._generation.branch

    @property
    def step(self) -> Step | None:
        """The step that was entered last, None if no pass asked for it."""
        return self._generation.current

    @property
    def recipe(self) -> Recipe:
        """The passes with their options, and the model that they are for."""
        return Recipe.of(self.original, self.passes)

    def save_recipe(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the recipe as YAML, schedules and mask tables in files beside it.

        Raises:
            ExportError: the path exists and ``force`` is not given, or writing failed.
            RecipeError: an option of a pass cannot be written.
        """
        return self.recipe.save(path, force=force)

    def generation(self, num_steps: int) -> AbstractContextManager[None]:
        """Say that the calls inside belong to one generation of ``num_steps`` steps."""
        return self._generation.generation(num_steps)

    def warmup(
        self,
        example_inputs: Mapping[str, Any],
        step: Step | None = None,
        num_steps: int | None = None,
        progress: bool = True,
    ) -> None:
        """Capture, rewrite, compile and run once for inputs of these shapes.

        Args:
            example_inputs: keyword arguments of one forward call.
            step: warm up what runs at this step.
            num_steps: warm up everything that runs in a generation of this many steps.  With
                neither, what runs where every pass is active.
            progress: show a bar over the stages that are compiled.
        """
        if num_steps is not None and num_steps < 1:
            raise ScheduleError(f"warmup: num_steps must be at least 1, got {num_steps}")
        inputs = bind_example(self.original, example_inputs)
        steps = [step] if num_steps is None else [Step(i, num_steps) for i in range(num_steps)]
        plans: dict[_Plan, None] = {}
        for now in steps:
            passes = self.passes if now is None else active_at(self.passes, now)
            plan = self.plan(inputs, tuple(passes))
            if plan.program.loads:  # nothing is held: what makes the state runs first
                plans[self.plan(inputs, tuple(p.afresh() for p in passes))] = None
            plans[plan] = None
        stages = [stage for plan in plans for stage in plan.stages]
        warm_up([(plan.program, plan.run) for plan in plans], stages, inputs, progress)

    def __getattr__(self, name: str) -> Any:
        if "original" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self.__dict__["original"], name)
        return refusal(name, type(self.original).__name__) or value

    def to(self, *args: Any, **kwargs: Any) -> OptimizedModule:
        """Move the original; what was made for its old device or dtype serves when it is back."""
        return self._changed(lambda: self.original.to(*args, **kwargs))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> OptimizedModule:
        """What `half`, `cuda` and the like do, done to the original."""
        return self._changed(lambda: self.original._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _changed(self, change: Callable[[], Any]) -> OptimizedModule:
        change()
        self.__dict__["_placed"] = _placed(self.original)
        return self

    def train(self, mode: bool = True) -> OptimizedModule:
        """Stay in inference mode; optimised modules cannot train."""
        if mode:
            raise InputError("an optimised module cannot be trained; train `.original`")
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original's state dict."""
        return self.original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the original; compiled graphs see the new values."""
        return self.original.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The original's parameters."""
        return self.original.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The original's buffers."""
        return self.original.named_buffers(*args, **kwargs)

    def extra_repr(self) -> str:
        """Name the original and the passes."""
        return f"{type(self.original).__name__}, passes={list(self.passes)}"


def _placed(model: nn.Module) -> frozenset[tuple[torch.device, torch.dtype]]:
    """The devices and dtypes of a model's weights: what is captured is captured for these."""
    return frozenset((t.device, t.dtype) for t in (*model.parameters(), *model.buffers()))


def active_at(passes: Sequence[Pass], step: Step) -> tuple[Pass, ...]:
    """The passes of a step.

    Raises:
        ScheduleError: it lies before the first one.
    """
    if step.index < 0:
        raise ScheduleError(f"step {step.index} does not exist; the first one is 0")
    return tuple(now for p in passes if (now := p.at(step)) is not None)
