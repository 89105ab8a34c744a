"""The optimised module: takes the original's place in a pipeline and shares its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.quantised_weights import forget
from fisopt.errors import InputError
from fisopt.passes.step_cache import StepCache
from fisopt.recipe.recipe import Recipe
from fisopt.recipe.tuned import UNTUNED, other_steps
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs, bind, bind_example
from fisopt.rewrite.variants import Variant, Variants
from fisopt.runtime.branch_pairs import BranchPairs
from fisopt.runtime.caller import CallersScheduler
from fisopt.runtime.captures import Captures
from fisopt.runtime.clock import Call, Clock, Mark
from fisopt.runtime.copies import Copies
from fisopt.runtime.diffusers_caches import translated
from fisopt.runtime.forward_call import ForwardCall
from fisopt.runtime.generation import Generation
from fisopt.runtime.hooked import hooked
from fisopt.runtime.made_class import Forward, instance, of_original
from fisopt.runtime.on_host import METHODS, check_on_host
from fisopt.runtime.plans import Plan, Plans
from fisopt.runtime.progress import warm_up
from fisopt.runtime.report import Report
from fisopt.runtime.settings import Settings
from fisopt.spec import ModelSpec, SpecOf


class OptimizedModule(Copies, nn.Module):
    """A model that runs rewritten Programs; made by `fisopt.optimize`.

    It has the original's forward signature and return type and forwards everything else
    (``config``, ``dtype``, ``device``, ``state_dict``, ``cache_context``, ...) to it. The first
    call with a new shape captures, rewrites and compiles the model. Gradients flow to inputs and to
    the original's parameters if gradients are enabled and one of them requires a gradient.

    Attributes:
        original: the original model, unchanged.
        passes: the passes, in order.
        report: what each pass did to which block.
    """

    MADE_OF = ("settings", "scheduler", "device")
    __slots__ = (
        "_captures",
        "_clock",
        "_device",
        "_generation",
        "_pairs",
        "_plans",
        "_scheduler",
        "_settings",
        "_variants",
        "_watchers",
        "original",
        "passes",
        "report",
    )

    original: nn.Module
    passes: tuple[Pass, ...]
    report: Report
    _captures: Captures
    _clock: Clock
    _device: torch.device | None
    _generation: Generation
    _pairs: BranchPairs
    _plans: Plans
    _scheduler: Callable[[], Any] | None
    _settings: Settings
    _variants: Variants
    _watchers: list[Callable[[Mapping[str, torch.Tensor]], None]]

    def __new__(cls, model: nn.Module, *_: Any, settings: Settings, **__: Any) -> Self:  # noqa: D102
        more = METHODS if settings.offload is not None else {}
        return instance(cls, cls._forward, lambda made: made._plans.exchanged(), model, more)

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Pass],
        spec: ModelSpec | SpecOf,
        *,
        settings: Settings,
        scheduler: Callable[[], Any] | None = None,
        captures: Captures | None = None,
        device: torch.device | None = None,
    ) -> None:
        if settings.offload is not None:
            check_on_host(model)
        captures = Captures(model, spec) if captures is None else captures
        captures.resize(settings.cache_size)
        generation = Generation(CallersScheduler(self, scheduler))
        report = Report(type(model).__name__, settings.backend, notes=generation.notes)
        report.decisions = generation.decisions
        plans = Plans(captures, settings, report, generation)
        for name, value in {
            "original": model,
            "passes": tuple(passes),
            "report": report,
            "_captures": captures,
            "_clock": Clock(),
            "_device": device,
            "_generation": generation,
            "_pairs": BranchPairs(generation, plans, model),
            "_plans": plans,
            "_scheduler": scheduler,
            "_settings": settings,
            "_variants": Variants.of(passes),
            "_watchers": [],
        }.items():
            object.__setattr__(self, name, value)  # a module's own would register the original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model under its hooks; arguments and return value are the original's."""
        if not isinstance(vars(type(self)).get("forward"), Forward):
            raise InputError(
                f"{type(self).__name__}: the forward of the optimised module's class was "
                "replaced, so its graph would not run; put it back, or do without fisopt"
            )
        return self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, which no compiler of the code around it may look into."""
        return _untraced()(self, *args, **kwargs)

    def _hooked(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, inside the hook of accelerate that moves the original if it has one."""
        moved = self.original if self._settings.offload is None else self
        return hooked(moved, self.original, self._run, args, kwargs)

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        inputs = Inputs.of(bind(self.original, args, kwargs))
        if any(p.stage == "branches" for p in self.passes):
            return self._pairs.run(inputs, self._variants.whole, self._computed)
        return self._computed(inputs)

    def _computed(self, inputs: Inputs) -> Any:
        """What a call returns, computed here."""
        began = Mark.now(inputs)
        made = (self._generation, self._plans, self.plan, self._variants, self._watchers)
        call = ForwardCall(inputs, *made)
        output, ran, compiles = call.run()
        step = self.step if self._variants.stepwise else None
        if step is not None and (line := other_steps(self._settings.tuned, step.count)):
            self._generation.note(line)
            warnings.warn(line, stacklevel=2)
        self._clock.note(inputs, began, ran, self.branch, step, compiles)
        return output

    @contextmanager
    def watch(self, watcher: Callable[[Mapping[str, torch.Tensor]], None]) -> Iterator[None]:
        """Inside, call ``watcher`` with the measurements of every forward call, by name."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def program(self, example_inputs: Mapping[str, Any], step: Step | None = None) -> Program:
        """The rewritten Program for these inputs, at a step (default: every pass active)."""
        inputs = bind_example(self.original, example_inputs)
        variant = self._variants.fullest if step is None else self._variants.at(step)
        return self.plan(inputs, variant).program

    def plan(self, inputs: Inputs, variant: Variant) -> Plan:
        """The executable for some inputs and a variant; made once for each state of the model."""
        return self._plans.plan(inputs, variant)

    def rewritten(self, inputs: Inputs, variant: Variant) -> Program:
        """The Program for some inputs and a variant; this compiles nothing."""
        return self._plans.rewritten(inputs, variant)

    def clear(self) -> None:
        """Drop what was captured, rewritten, compiled and quantised; calls make it again."""
        forget(self.original)
        self._plans.clear()
        self._captures.clear()

    @contextmanager
    def cache_context(self, name: str, **said: Any) -> Iterator[None]:
        """One guidance branch's forward call, as diffusers pipelines announce it."""
        with ExitStack() as stack:
            if (theirs := getattr(self.original, "cache_context", None)) is not None:
                stack.enter_context(theirs(name, **said))
            stack.enter_context(self._generation.context(name, **said))
            yield

    def enable_cache(self, config: Any) -> None:
        """Cache steps as a diffusers config describes; this adds a `StepCache` to the passes.

        Raises:
            InputError: the module already has a step cache, or no `StepCache` matches the config.
        """
        if self.is_cache_enabled:
            raise InputError(
                f"{type(self).__name__} has a step cache among its passes; disable_cache() first"
            )
        cache, note = translated(config)
        self._exchange((*self.passes, cache))
        if note:
            self._generation.note(note)

    def disable_cache(self) -> None:
        """Remove the step cache from the passes."""
        self._exchange([p for p in self.passes if not isinstance(p, StepCache)])

    @property
    def is_cache_enabled(self) -> bool:
        """Whether a step cache is among the passes."""
        return any(isinstance(p, StepCache) for p in self.passes)

    def _exchange(self, passes: Sequence[Pass]) -> None:
        """Run with other passes from the next call on."""
        object.__setattr__(self, "passes", tuple(passes))
        object.__setattr__(self, "_variants", Variants.of(passes))
        object.__setattr__(self, "_settings", replace(self._settings, tuned=UNTUNED))

    @property
    def spec(self) -> ModelSpec | SpecOf:
        """The original's blocks and token grid, or a function that finds them at a call."""
        return self._captures.spec

    @property
    def captures(self) -> Captures:
        """The captured Programs of the original."""
        return self._captures

    @property
    def calls(self) -> list[Call]:
        """The newest forward calls, oldest first: what ran, and how long it took."""
        return self._clock.calls

    @property
    def options(self) -> KernelOptions:
        """The requested kernels."""
        return self._settings.kernels

    @property
    def last_inputs(self) -> Inputs | None:
        """The inputs of the shapes that it ran or prepared last; None before the first."""
        newest = self._plans.newest()
        return None if newest is None else newest.program.inputs

    @property
    def branch(self) -> str:
        """The current guidance branch, as the pipeline names it."""
        return self._generation.branch

    @property
    def step(self) -> Step | None:
        """The step entered last; None if no pass needs it."""
        return self._generation.current

    @property
    def recipe(self) -> Recipe:
        """The passes with their options, the kernels, and the model that they are for."""
        settings = self._settings
        return Recipe.of(self.original, self.passes, settings.kernels, settings.tuned)

    def save_recipe(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the recipe as one YAML file, including schedules and mask tables.

        Raises:
            ExportError: the path exists and ``force`` is not set, or writing failed.
            RecipeError: an option of a pass cannot be written.
        """
        return self.recipe.save(path, force=force)

    def generation(self, num_steps: int) -> AbstractContextManager[None]:
        """Declare that the calls inside belong to one generation of ``num_steps`` steps."""
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
            step: warm up the variant of this step.
            num_steps: warm up every variant of a generation with this many steps. Without ``step``
                and ``num_steps``, warm up the variant with every pass active.
            progress: show a progress bar over the stages to compile.
        """
        variants = Variants.of(self.passes, num_steps)
        inputs = bind_example(self.original, example_inputs)
        one = variants.fullest if step is None else variants.at(step)
        wanted = [one] if num_steps is None else variants.schedule
        warm_up(partial(self.plan, inputs), wanted, inputs, progress)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, of_original(self, self.original, value))

    def __repr__(self) -> str:
        return f"OptimizedModule({type(self).__name__}, passes={list(self.passes)})"

    def train(self, mode: bool = True) -> OptimizedModule:
        """Stay in evaluation mode, the only mode; gradients flow in it too."""
        if mode:
            raise InputError(
                "an optimised module has no training mode, in which every run may draw other "
                "numbers; leave out .train(): gradients flow in evaluation mode"
            )
        return self


@cache
def _untraced() -> Callable[..., Any]:
    """What runs a module; made at the first call, as it imports torch's compiler and Triton."""
    run: Callable[..., Any] = torch.compiler.disable(OptimizedModule._hooked)  # type: ignore[no-untyped-call]
    return run
