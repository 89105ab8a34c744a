"""Trials: whole generations under some passes, against dense ones of the same noise.

A dense generation is recorded once a clip: what the model returned at each call.  A trial takes
that from the record until the first step at which its passes change anything, so that a change at a
late step costs late steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fisopt import models
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.errors import InputError
from fisopt.pipelines import SchedulerOf, transformers_of
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs, bind
from fisopt.runtime.optimized import OptimizedModule
from fisopt.runtime.settings import Settings
from fisopt.tuning.recorder import Recorder
from fisopt.tuning.replay import tensors

PLANS = 512
"""So many rewritten forms of a model are kept at one time."""
Mode = Literal["record", "pretend", "play"]


@dataclass(frozen=True)
class Line:
    """A call of a dense generation.

    Attributes:
        component: the transformer.
        step: the step of the generation.
        output: what it returned.
    """

    component: str
    step: int
    output: Any


@dataclass
class Clip:
    """A dense generation.

    Attributes:
        lines: its calls, in order.
        latents: what it ended in.
        exact: what it ends in where linears multiply in the precision of the model.
        seconds: how long it took.
    """

    lines: list[Line] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    exact: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


class Script:
    """What the modules of a pipeline do in the generation that runs now."""

    def __init__(self) -> None:
        self.clip = Clip()
        self.mode: Mode = "record"
        self.live, self.place = True, 0

    def record(self, *, pretend: bool = False) -> None:
        """From now on a new clip is recorded; nothing is computed for one that is pretended."""
        self.clip, self.mode = Clip(), "pretend" if pretend else "record"

    def play(self, clip: Clip) -> None:
        """From now on a clip is followed, until something differs from it."""
        self.clip, self.mode, self.live, self.place = clip, "play", False, 0

    def next(self) -> Line:
        """The call that comes next in the clip.

        Raises:
            InputError: the pipeline calls its transformers more often than when it ran dense.
        """
        if self.place == len(self.clip.lines):
            raise InputError(
                f"tune: the pipeline made {self.place} calls when it ran dense and makes more now; "
                "it must run the same steps for the same prompt"
            )
        self.place += 1
        return self.clip.lines[self.place - 1]


class Rehearsed(OptimizedModule):
    """A transformer whose calls are recorded, or taken from a record as long as it runs dense."""

    __slots__ = ("_component", "_script", "_steps")
    _component: str
    _script: Script
    _steps: int

    def join(self, component: str, script: Script, steps: int) -> None:
        """Become a part of a pipeline's script."""
        for name, value in (("_component", component), ("_script", script), ("_steps", steps)):
            object.__setattr__(self, name, value)

    def take(self, passes: Sequence[Pass]) -> None:
        """Run with other passes from the next call on; what was rewritten is kept."""
        self._exchange(passes)

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        script = self._script
        if script.mode != "play":
            return self._record(args, kwargs, pretend=script.mode == "pretend")
        line = script.next()
        if not script.live and not self._variants.at(Step(line.step, self._steps)).passes:
            self._enter(args, kwargs)
            return pytree.tree_map(_kept, line.output)
        script.live = True
        return super()._run(args, kwargs)

    def _enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Inputs, Step]:
        """The inputs of a call, and its step, which is entered."""
        inputs = Inputs.of(bind(self.original, args, kwargs))
        return inputs, self._generation.step(inputs.kwargs())

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, pretend: bool) -> Any:
        inputs, step = self._enter(args, kwargs)
        output = self._zeros(inputs) if pretend else super()._run(args, kwargs)
        kept = pytree.tree_map(_kept, output)
        self._script.clip.lines.append(Line(self._component, step.index, kept))
        return output

    def _zeros(self, inputs: Inputs) -> Any:
        """What the model returns, as zeros."""
        program = self.program(inputs.kwargs())
        held = outputs_of(program.graph)[: program.own_results]
        values = (n.meta["val"] if isinstance(n, fx.Node) else n for n in held)
        device = next(x.device for _, x in inputs.tensors())
        zeros = [_zeros_like(v, device) for v in values]
        return program.split(zeros).output


def _zeros_like(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.zeros(value.shape, dtype=value.dtype, device=device)


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class Trials:
    """A pipeline that runs dense, and under passes, from the same noise.

    Args:
        recorder: runs the pipeline.
        kernels: what runs the transformers, dense and under passes.

    Attributes:
        modules: its transformers, by name.
        clips: what ran dense, by the number of the prompt.
    """

    def __init__(
        self,
        recorder: Recorder,
        kernels: KernelOptions = KernelOptions(),  # noqa: B008 - it cannot change
    ) -> None:
        self.recorder, self.kernels, self.script = recorder, kernels, Script()
        self.clips: dict[int, Clip] = {}
        self.modules: dict[str, Rehearsed] = {}
        self._exact: dict[str, OptimizedModule] = {}

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, the pipeline's transformers are those of `modules`; then it is as it was."""
        pipeline = self.recorder.pipeline
        before = transformers_of(pipeline)
        for name, module in before.items():
            captures = module.captures if isinstance(module, OptimizedModule) else None
            original = module.original if isinstance(module, OptimizedModule) else module
            spec = module.spec if isinstance(module, OptimizedModule) else models.spec_of(original)
            scheduler = SchedulerOf(pipeline)
            settings = Settings(backend="eager", cache_size=PLANS, kernels=self.kernels)
            made = Rehearsed(
                original, (), spec, settings=settings, scheduler=scheduler, captures=captures
            )
            made.join(name, self.script, self.recorder.steps)
            self.modules[name] = made
            if self.kernels.rounds:
                exact = replace(settings, kernels=self.kernels.unrounded)
                self._exact[name] = OptimizedModule(
                    original, (), spec, settings=exact, scheduler=scheduler, captures=made.captures
                )
            setattr(pipeline, name, made)
        try:
            yield
        finally:
            for name, module in before.items():
                setattr(pipeline, name, module)

    def dense(self, index: int) -> Clip:
        """The dense generation of a prompt, recorded once; a second one must end alike.

        Raises:
            InputError: it does not, or what the pipeline returns holds no tensor.
        """
        if index not in self.clips:
            self._use({})
            self.script.record()
            began = perf_counter()
            latents = self._latents(index)
            if any(x.is_cuda for x in latents):
                torch.cuda.synchronize()
            clip = self.script.clip
            clip.seconds, clip.latents = perf_counter() - began, latents
            clip.exact = self._run_exact(index) or latents
            if not clip.lines:
                raise InputError(
                    "tune: the pipeline did not call its transformer; check that it makes a clip"
                )
            self.clips[index] = clip
            self._check_paired(index, clip)
        return self.clips[index]

    def _check_paired(self, index: int, clip: Clip) -> None:
        """Run again, all calls from the record: only what else is random can differ."""
        self.script.play(clip)
        again = self._latents(index)
        if _distance(again, clip.latents) > 1e-6:
            scheduler = type(getattr(self.recorder.pipeline, "scheduler", None)).__name__
            raise InputError(
                f"tune: two dense runs of prompt {index} with one seed end with different "
                f"latents, though the model returned the same: the scheduler ({scheduler}) or the "
                "pipeline draws noise from elsewhere than the generator; use a deterministic "
                "scheduler, or give `generate` a function that seeds all of it"
            )

    def _run_exact(self, index: int) -> list[Tensor]:
        """The latents of a dense clip of unrounded linears; none where nothing is rounded."""
        if not self._exact:
            return []
        pipeline = self.recorder.pipeline
        try:
            for name, module in self._exact.items():
                setattr(pipeline, name, module)
            return self._latents(index)
        finally:
            for name, made in self.modules.items():
                setattr(pipeline, name, made)

    def error(self, index: int, passes: Mapping[str, Sequence[Pass]]) -> float:
        """Squared relative L2 error of a clip's final latents under passes, by transformer.

        It is what the passes add: against the dense clip of the same kernels.
        """
        clip = self.dense(index)
        return _distance(self._played(index, passes), clip.latents)

    def rounding(self, index: int) -> float:
        """Squared relative L2 error of a clip's final latents that its kernels alone cause."""
        clip = self.dense(index)
        return _distance(clip.latents, clip.exact)

    def whole_error(self, index: int, passes: Mapping[str, Sequence[Pass]]) -> float:
        """The same with what rounded linears add: against the model in its own precision."""
        clip = self.dense(index)
        return _distance(self._played(index, passes), clip.exact)

    def _played(self, index: int, passes: Mapping[str, Sequence[Pass]]) -> list[Tensor]:
        self._use(passes)
        self.script.play(self.clips[index])
        return self._latents(index)

    def pretend(self, index: int) -> Clip:
        """The calls of a generation in which the transformers return zeros at once."""
        self._use({})
        self.script.record(pretend=True)
        self._latents(index)
        return self.script.clip

    def peak(self) -> float:
        """Range of the dense latents over their root mean square, mean of the clips."""
        found = []
        for clip in self.clips.values():
            x = torch.cat([t.double().flatten() for t in clip.exact])
            found.append(float((x.max() - x.min()) / x.square().mean().sqrt()))
        return sum(found) / len(found)

    def program(self, component: str) -> Program:
        """The dense Program of a transformer, at the shape that it was called with."""
        module = self.modules[component]
        assert module.last_inputs is not None
        return module.program(module.last_inputs.kwargs())

    def _use(self, passes: Mapping[str, Sequence[Pass]]) -> None:
        for name, module in self.modules.items():
            module.take(passes.get(name, ()))

    def _latents(self, index: int) -> list[Tensor]:
        with torch.no_grad():
            output = self.recorder.run(index)
        found = tensors(output) or [
            torch.as_tensor(x) for x in pytree.tree_leaves(output) if hasattr(x, "__array__")
        ]
        if not found:
            raise InputError(
                "tune: the pipeline returned no tensor; `generate` must return the final latents"
            )
        return [x.detach().float() for x in found]


def _distance(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Squared distance over the squared norm of what is wanted."""
    pairs = [(a.double(), b.double()) for a, b in zip(got, want, strict=True)]
    total = sum(float(b.square().sum()) for _, b in pairs)
    moved = sum(float((a - b).square().sum()) for a, b in pairs)
    return moved / total if total else 0.0
