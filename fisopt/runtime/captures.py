"""What was captured of one model, in each of the states that it was met in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import RLock
from typing import Any

import torch
from torch import nn

from fisopt.concurrency import running, tracing
from fisopt.errors import InputError
from fisopt.lru import SIZE, Lru
from fisopt.rewrite.capture import capture
from fisopt.rewrite.program import Program
from fisopt.rewrite.tools.tool import settle
from fisopt.rewrite.tracing.inputs import Inputs, bind_example
from fisopt.rewrite.tracing.readiness import check_model
from fisopt.runtime.ambient import ambient
from fisopt.runtime.disk.on_disk import keeping
from fisopt.runtime.fingerprint import Fingerprint
from fisopt.spec import GridOf, ModelSpec, SpecOf

STATES = 8
"""So many states of a model are remembered, such as with and without an adapter."""


class Captures:
    """The dense Programs of a model; threads and optimised modules may share them.

    Args:
        model: the model.
        spec: where its blocks are, and its token grid; or what finds that at the first call.
        size: how many are kept.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec | SpecOf, size: int = SIZE) -> None:
        self.model, self.spec = model, spec
        self._found = ""
        self.lock = RLock()
        self._size = size
        self._held: Lru[Any, Program] = Lru(size)
        self._states: Lru[int, Fingerprint] = Lru(STATES)
        self._now: tuple[Fingerprint, Fingerprint] | None = None
        self._grid: GridOf | None = None

    @staticmethod
    def of(program: Program) -> Captures:
        """Those of the model of a dense Program, which is used where the model is as it was."""
        source = program.source
        made = Captures(source.model, source.spec)
        if source.made_in is not None:
            state, modes = source.made_in
            made._states[id(state)] = state
            made._hold(_key(program.inputs, state, modes), program)
        return made

    def state(self) -> Fingerprint:
        """The state that the model is in; equal states are one object.

        Raises:
            InputError: the model cannot be captured as it is, see `check_model`.
        """
        with running():  # a model that is being traced is not as it is
            now = self._now
            if now is not None and now[0].holds():
                return now[1]
        with running(), self.lock:
            settle(self.model)
            found = Fingerprint(self.model)
            check_model(self.model, found.hidden)
            known = reversed([*self._states.values()])
            state = next((before for before in known if found.same(before)), found)
            self._states[id(state)] = state
            self._now = (found, state)
            for program in self._held.values():
                program.source.refresh()
        return state

    def knows(self, state: Fingerprint) -> bool:
        """Whether a state is remembered: what was made for another can serve no more."""
        return id(state) in self._states

    def dense(self, inputs: Inputs, state: Fingerprint, modes: tuple[Any, ...]) -> Program:
        """The dense Program for some inputs; one capture serves every shape of their form."""
        key = _key(inputs, state, modes)
        with tracing(), self.lock:
            if (captured := self._held.get(key)) is None:
                for old in [k for k in self._held if not self.knows(k[2])]:
                    del self._held[old]
                spec = self._spec_now(inputs)
                captured = capture(self.model, inputs.kwargs(), spec, keeping)
                if self._found:
                    captured.source.notes[self._found] = None
                self._hold(key, captured)
                if self._now is not None and self._now[1] is state:  # capture may leave traces
                    state.take(Fingerprint(self.model))
                    self._now = (state, state)
            return captured.at(inputs)

    def _hold(self, key: Any, captured: Program) -> None:
        if not callable(captured.source.spec.grid):
            self._grid = self._grid or captured.source.grid_of
        captured.source.bound(self._size)
        self._held[key] = captured

    def _spec_now(self, inputs: Inputs) -> ModelSpec:
        """The spec for whatever comes: its numbers, if it has some, are those of the first call."""
        if not isinstance(self.spec, ModelSpec):
            self.spec, self._found = self.spec(self.model, inputs.kwargs())
        return self.spec if self._grid is None else replace(self.spec, grid=self._grid)

    def grid_holds(self, example_inputs: Mapping[str, Any] | None) -> bool:
        """Whether the spec's grid is that of an example too, as far as is known."""
        if self._grid is None or example_inputs is None or not isinstance(self.spec, ModelSpec):
            return True
        try:
            return self._grid(bind_example(self.model, example_inputs).kwargs()) == self.spec.grid
        except InputError:
            return False

    def resize(self, size: int) -> None:
        """Keep so many from now on."""
        with self.lock:
            self._size = self._held.size = size
            for program in self._held.values():
                program.source.bound(size)

    def clear(self) -> None:
        """Forget everything that was captured."""
        with self.lock:
            self._held.clear()
            self._states.clear()
            self._now = None

    def __len__(self) -> int:
        """How many dense Programs are held, of all shapes."""
        return sum(len(program.source.cache) for program in self._held.values())


def remember(program: Program) -> None:
    """Note in which state of its model, and in which modes, a Program was captured just now."""
    modes = ambient(x for _, x in program.inputs.tensors())
    program.source.made_in = (Fingerprint(program.source.model), modes)


def _key(inputs: Inputs, state: Fingerprint, modes: tuple[Any, ...]) -> tuple[Any, ...]:
    """What one capture serves."""
    form = tuple(
        (x.ndim, x.dtype, x.device) if isinstance(x, torch.Tensor) else type(x)
        for x in inputs.leaves
    )
    return inputs.structure, form, state, modes
