"""A traced model as a template: one export, instantiated as a static graph for any shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fisopt.errors import CaptureError
from fisopt.lru import Lru
from fisopt.rewrite.tracing.frame_dims import FrameDims
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.instantiate import Instantiate, separate_roles
from fisopt.rewrite.tracing.key_masks import separate_masks
from fisopt.rewrite.tracing.trace import export, symbolic_dims
from fisopt.rewrite.tracing.training import SWITCHES

MODE = "fisopt.mode"
_VALUES = 1 << 14


@dataclass
class Template:
    """A traced model that gives a static graph for every shape it accepts.

    The first export leaves the frame count open.  The first inputs that differ in anything else
    cause a second one with every dimension open, which serves the shapes to come; sizes of one
    stay closed, so a batch of one and a batch of more are two exports.  An export serves the
    shapes that meet its guards: where a model bakes a size in all the same, another size is
    exported with the frames open, or for that shape alone.  Either way graphs of two frame
    counts correspond node for node, by name.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    frame_dims: FrameDims
    symbolic: list[_Traced] = field(default_factory=list)
    exports: int = 0
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    _attrs: dict[str, Any] = field(default_factory=dict)
    _values: Lru[Any, Any] = field(default_factory=lambda: Lru(_VALUES))
    _static: Lru[Any, fx.GraphModule] = field(default_factory=Lru)
    _tried: Lru[tuple[Any, ...], bool] = field(default_factory=Lru)

    def graphs(self) -> list[fx.GraphModule]:
        """Every export that is held."""
        return [*(traced.module for traced in self.symbolic), *self._static.values()]

    def bound(self, size: int) -> None:
        """Hold at most so many exports of each kind."""
        self._static.size = self._tried.size = size

    def instantiate(self, inputs: Inputs, traced: fx.GraphModule) -> fx.GraphModule:
        """Return the static graph of an export for inputs of these shapes, on fake tensors."""
        builder = Instantiate(traced, self.mode, self._attrs, self._values)
        graph = builder.run(inputs, self.blocks)
        graph.eliminate_dead_code()
        separate_masks(graph, builder.insert_for)
        separate_roles(graph)
        module = fx.GraphModule(traced, graph)
        module.meta |= {MODE: self.mode, SWITCHES: traced.meta.get(SWITCHES, False)}
        return module

    def trace(self, inputs: Inputs, *, general: bool = False) -> None:
        """Export once more with the frames open, or with every dimension open.

        A model that refuses open dimensions is left to be traced for each shape.
        """
        self._tried[self._form(inputs, general)] = True
        shapes = symbolic_dims(inputs, None if general else self.frame_dims)
        self.exports += 1
        try:
            module = export(self.model, inputs, shapes)
        except CaptureError:
            return
        self.symbolic.append(_Traced(module, _constants(inputs)))
        del self.symbolic[: -self._static.size]

    def covers(self, module: fx.GraphModule, inputs: Inputs) -> bool:
        """Whether an export serves inputs of these shapes too."""
        return any(t.module is module and t.accepts(inputs) for t in self.symbolic)

    def traced_for(self, inputs: Inputs, wider: Inputs | None = None) -> fx.GraphModule:
        """The export that covers inputs of these shapes, and wider ones, made if there is none.

        Where none covers both, the result covers the first alone.
        """
        for traced in self.symbolic:
            if traced.accepts(inputs) and (wider is None or traced.accepts(wider)):
                return traced.module
        same = any(_constants(inputs) == traced.constants for traced in self.symbolic)
        for general in (True, False):
            if same and self._form(inputs, general) not in self._tried:
                self.trace(inputs, general=general)
                return self.traced_for(inputs, wider)
        key = inputs.key()
        if (static := self._static.get(key)) is None:
            static = self._static[key] = export(self.model, inputs, None)
            self.exports += 1
        return static

    def _form(self, inputs: Inputs, general: bool) -> tuple[Any, ...]:
        """What all inputs share that one export with open dimensions could serve."""
        if general:
            return (*_constants(inputs), *_ones(inputs))
        leaves = list(inputs.leaves)
        for i, places in self.frame_dims.items():
            leaf, framed = leaves[i], {g.dim for g in places}
            if isinstance(leaf, torch.Tensor):
                sizes = [None if d in framed else size for d, size in enumerate(leaf.shape)]
                leaves[i] = (*sizes, str(leaf.dtype), str(leaf.device))
            else:
                leaves[i] = None
        return tuple(
            (tuple(x.shape), x.dtype, x.device) if isinstance(x, torch.Tensor) else x
            for x in leaves
        )


@dataclass(frozen=True)
class _Traced:
    """A symbolic export and what it bakes in: dtypes, ranks and plain values."""

    module: fx.GraphModule
    constants: tuple[Any, ...]

    def accepts(self, inputs: Inputs) -> bool:
        """Whether it covers inputs of these shapes: its guards hold."""
        if _constants(inputs) != self.constants:
            return False
        try:
            self.module.get_submodule("_guards_fn")(*inputs.leaves)
        except AssertionError:
            return False
        return True


def _constants(inputs: Inputs) -> tuple[Any, ...]:
    """What a symbolic export bakes in of its inputs: dtypes, ranks, plain values."""

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (value.ndim, value.dtype, value.device)
        return int if isinstance(value, int) and not isinstance(value, bool) else value

    return (inputs.structure, *(leaf(x) for x in inputs.leaves))


def _ones(inputs: Inputs) -> tuple[Any, ...]:
    """The sizes that an export with every dimension open leaves closed: those of one."""
    return (
        inputs.structure,
        *(
            tuple(d for d, size in enumerate(x.shape) if size <= 1)
            for x in inputs.leaves
            if isinstance(x, torch.Tensor)
        ),
    )
