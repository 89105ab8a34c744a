"""Plans: what runs for one shape, one variant and one state of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from fisopt.codegen.cache_tag import cache_tag
from fisopt.codegen.choose import Choice
from fisopt.codegen.compile import Runnable, compile_program
from fisopt.codegen.gathering import sharded
from fisopt.codegen.placement import Placement
from fisopt.concurrency import running, tracing
from fisopt.errors import InputError, PreconditionError
from fisopt.lru import Lru
from fisopt.passes.sharding.agreement import together
from fisopt.passes.sharding.weights import check_divided
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program, pass_of
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.sources import forgotten
from fisopt.rewrite.tracing.training import asks_for_gradients, check_gradients
from fisopt.rewrite.variants import Variant
from fisopt.runtime.ambient import ambient, without_casts
from fisopt.runtime.captures import Captures
from fisopt.runtime.fingerprint import Fingerprint
from fisopt.runtime.generation import Generation
from fisopt.runtime.on_host import check_on_host, device_of, on_host
from fisopt.runtime.report import Made, Report
from fisopt.runtime.same_adapters import SameAdapters
from fisopt.runtime.same_ranks import SameRanks
from fisopt.runtime.settings import Settings


@dataclass(frozen=True, eq=False)
class Plan:
    """A rewritten Program, what runs it, and what was compiled for it.

    Attributes:
        program: the Program.
        compiled: runs it, handed tensors of the form that it was compiled for.
        stages: what was compiled for it and not for one before.
        numbers: names of its measurements that are one number.
        made: its part of the report.
        trained: makes what runs it where gradients are asked for, once.
        ran: whether it has run, without gradients or with them, and so is compiled.
    """

    program: Program
    compiled: Runnable
    stages: tuple[Runnable, ...]
    numbers: frozenset[str]
    made: Made
    trained: Callable[[], Runnable]
    ran: set[bool] = field(default_factory=set)

    def run(self, *values: torch.Tensor) -> Any:
        """Run it on tensors of the captured shapes, strided in any way.

        Gradients flow where they are on, and a value or a parameter of the model asks for one.

        Raises:
            PreconditionError: gradients are asked for through a pass that has none.
            PassError: or through an operator.
            InputError: or through a model that turns them off or on itself.
        """
        training = asks_for_gradients(self.program.source.model, values)
        compiled = self.trained() if training else self.compiled
        given = (x.detach() if x.requires_grad and not training else x for x in values)
        gradients, ranks = torch.set_grad_enabled(training), self.program.ranks
        with gradients, without_casts(values), self._among(training), together(ranks):
            result = compiled(*map(_plain, given))
        self.ran.add(training)
        return result

    def _among(self, training: bool) -> AbstractContextManager[None]:
        """The first run compiles, which no other thread may see."""
        return running() if training in self.ran else _compiling(training)

    def remembers(self, stepwise: bool) -> bool:
        """Whether it takes or leaves something between steps; numbers count where steps differ."""
        program = self.program
        return bool(program.loads or program.stores or (stepwise and self.numbers))

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


class Plans:
    """The plans of one optimised module, the newest ones; threads may share them.

    Args:
        captures: what was captured of its model.
        settings: how it is run.
        report: takes what is made, exchanged and dropped.
        generation: tells which generation a call belongs to.

    Attributes:
        measured: names of the numbers that any Program so far has measured.
    """

    def __init__(
        self,
        captures: Captures,
        settings: Settings,
        report: Report,
        generation: Generation,
    ) -> None:
        self._captures, self._settings = captures, settings
        self._adapters = SameAdapters(captures.model, generation.clip)
        branch, kernels = (lambda: generation.branch), str(settings.kernels)
        self._ranks = SameRanks(captures.model, generation.clip, branch, kernels)
        self._report, self._lock = report, RLock()
        self._held: Lru[Any, Plan] = Lru(settings.cache_size, self._dropped)
        self._compiled: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._state: Fingerprint | None = None
        self._states: WeakSet[Fingerprint] = WeakSet()
        self.measured: frozenset[str] = frozenset()

    def plan(self, inputs: Inputs, variant: Variant) -> Plan:
        """What runs for some inputs and a variant; made once for each state of the model."""
        key = self._key(inputs, variant)
        if (plan := self._held.get(key)) is None:
            with tracing(), self._lock:
                if (plan := self._held.get(key)) is None:
                    for old in [k for k in self._held if not self._captures.knows(k[1])]:
                        self._drop(old)
                    plan = self._held[key] = self._make(inputs, variant, key)
                    self._report.variants.append(plan.made)
                    self.measured |= plan.numbers
        self._ranks.check(plan.program, inputs, variant)
        return plan

    def rewritten(self, inputs: Inputs, variant: Variant) -> Program:
        """The Program for some inputs and a variant, which is not compiled for it."""
        key = self._key(inputs, variant)
        if (plan := self._held.get(key)) is not None:
            return plan.program
        with tracing(), forgotten():
            dense = self._captures.dense(self._held_inputs(inputs), key[1], key[2])
            return PassManager.of(variant, strict=self._settings.strict).run(dense)

    def check_among(self, share: Share, inputs: Inputs, variant: Variant) -> None:
        """Insist that some ranks make the same call; see `SameRanks`."""
        self._ranks.check_among(share, inputs, variant)

    def state(self, *, asked: bool) -> Fingerprint | None:
        """The state that the model is in.

        Args:
            asked: this call has asked for a plan, so that it was compared already.
        """
        return self._state if asked else self._captures.state()

    def newest(self) -> Plan | None:
        """The plan that was used last, None if there is none."""
        plans = [*self._held.values()]
        return plans[-1] if plans else None

    def clear(self) -> None:
        """Drop every plan."""
        with self._lock:
            for key in list(self._held):
                self._drop(key)

    def exchanged(self) -> None:
        """Take note that the adapters of the model are exchanged, which its state need not show."""
        self._adapters.exchanged()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def stages(self) -> int:
        """How many compiled graphs are held."""
        return len(self._compiled)

    def _key(self, inputs: Inputs, variant: Variant) -> tuple[Any, ...]:
        state = self._captures.state()
        self._adapters.check(state)
        if state is not self._state:
            with self._lock:
                new = state not in self._states
                self._states.add(state)
                if self._state is not None and new:
                    self._report.recaptured(state.difference(self._state))
                self._state = state
        return (inputs.key(), state, ambient(x for _, x in inputs.tensors()), variant)

    def _make(self, inputs: Inputs, variant: Variant, key: tuple[Any, ...]) -> Plan:
        placement = None
        if self._settings.offload is not None:
            check_on_host(self._captures.model)
            placement = Placement(device_of(inputs), self._settings.offload, self._report.weights)
        with torch.inference_mode(False), torch.no_grad(), forgotten():
            dense = self._captures.dense(self._held_inputs(inputs), key[1], key[2])
            manager = PassManager.of(variant, strict=self._settings.strict)
            program = manager.run(dense)
            check_divided(program)
            before = set(self._compiled)
            choices: list[Choice] = []
            run = compile_program(
                program,
                self._settings.backend,
                self._compiled,
                choices,
                options=self._settings.kernels,
                placement=placement,
            )
        stages = tuple(stage for known, stage in self._compiled.items() if known not in before)
        made = Made.of(dense, program, manager.applied, variant.names, len(stages), choices)

        @cache
        def trained() -> Runnable:
            _check_training(variant, program, self._settings)
            with tracing(), torch.inference_mode(False), torch.no_grad():
                return compile_program(
                    program, self._settings.backend, self._compiled, training=True
                )

        return Plan(program, run, stages, _numbers(program), made, trained)

    def _held_inputs(self, inputs: Inputs) -> Inputs:
        """Inputs where the weights are, as the model is captured there."""
        held = inputs.detached()
        return held if self._settings.offload is None else on_host(held)

    def _drop(self, key: Any) -> None:
        self._forget(self._held.pop(key))

    def _dropped(self, plan: Plan) -> None:
        self._forget(plan)
        self._report.dropped += 1

    def _forget(self, plan: Plan) -> None:
        self._report.variants = [v for v in self._report.variants if v is not plan.made]


@contextmanager
def _compiling(training: bool) -> Iterator[None]:
    """Inside, no other thread traces or runs, and what is compiled is so with its gradient."""
    from torch.compiler import config as compiler

    tag = compiler.cache_key_tag + cache_tag()
    patched = compiler.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with tracing(), patched, ExitStack() as stack:
        if training:
            from torch._functorch import config  # over a second: not at import

            stack.enter_context(config.patch(force_non_lazy_backward_lowering=True))
        yield


def _numbers(program: Program) -> frozenset[str]:
    """The names of the measurements of a Program that are one number."""
    nodes = results(program.graph)[-len(program.gauges) :] if program.gauges else []
    pairs = zip(program.gauges, nodes, strict=True)
    return frozenset(name for name, node in pairs if node.meta["val"].numel() == 1)


def _check_training(variant: Variant, program: Program, settings: Settings) -> None:
    """Refuse to train where gradients do not flow.

    Raises:
        PreconditionError: through a pass; other errors: see `check_gradients`.
        InputError: through linears in FP8, which have no gradient, or to weights that are copied.
    """
    if settings.offload is not None:
        raise InputError(
            "offload='block' runs on copies of the weights, so the weights get no gradients; "
            "leave it out to train, or call the module under torch.no_grad"
        )
    if sharded(program.source.model):
        raise InputError(
            "weights that ranks divide are gathered to where they are used, which gradients do "
            "not reach; train the model before, or call the module under torch.no_grad"
        )
    if settings.kernels.rounds:
        raise InputError(
            f"linear={settings.kernels.linear!r} rounds, which has no gradient, so nothing can be "
            "trained through it; leave it out, or call the module under torch.no_grad"
        )
    for each in variant.passes:
        if not each.differentiable:
            raise PreconditionError(
                "it has no gradient, so nothing can be trained through what it makes; leave it "
                "out, or call the module under torch.no_grad",
                pass_name=each.name,
            )
    check_gradients(program.graph_module, program.source.model)


def _plain(x: torch.Tensor) -> torch.Tensor:
    """A tensor as graphs are compiled for: row-major, without lazy conjugation.

    Compiled code is bound to strides, also to those of dimensions of size one.
    """
    x = x.resolve_conj().resolve_neg() if x.is_complex() else x
    stride = 1
    for size, got in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if got != stride:
            return x.contiguous().reshape(-1).reshape(x.shape)
        stride *= size
    return x
