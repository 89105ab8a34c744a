"""Tracing: a model run once on fake tensors of some shapes, as a flat graph of operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fisopt.errors import CaptureError
from fisopt.rewrite.outline import share
from fisopt.rewrite.tools.tool import traced
from fisopt.rewrite.tracing.block_paths import blocks_of, running_block
from fisopt.rewrite.tracing.functional import functional
from fisopt.rewrite.tracing.inner import faked, with_inner
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.puts import Put, put_into
from fisopt.rewrite.tracing.recorder import Recorder, Tape
from fisopt.rewrite.tracing.shape_numbers import shape_numbers
from fisopt.rewrite.tracing.training import SWITCHES, GradientSwitches
from fisopt.rewrite.tracing.trials import user_line
from fisopt.rewrite.tracing.untouched import untouched
from fisopt.rewrite.tracing.weights import WeightPlace, weight_places

MODE = "fisopt.mode"
"""Where a graph module says the mode that its values are fake in."""
STRUCTURE = "fisopt.structure"
"""Where a traced module says the pytree of what its model returns."""

PUTS = "fisopt.puts"
"""Where a traced module says what it puts into containers; these tensors follow its results."""

_BUFFER = "register it as a buffer, or clone it before it is written"
_COPY = torch.ops.aten.copy_.default


def trace(
    model: nn.Module, inputs: Inputs, patterns: tuple[str, ...], recorder: Recorder
) -> fx.GraphModule:
    """Run a model on fake tensors of the shapes of some inputs and write down what runs.

    Args:
        model: the model; its weights may be on the meta device.
        inputs: whose shapes and plain values the graph is for.
        patterns: paths of its blocks, which nodes are marked with.
        recorder: runs it.

    Returns:
        A static graph of functional operators on the model's own weights.  What the model writes
        into inputs and buffers is a ``copy_`` at its end; what it puts into containers of its
        arguments follows its results.

    Raises:
        CaptureError: it cannot be run on shapes alone; the message shows the model's own line.
    """
    try:
        with traced(model), untouched(model, inputs.leaves):
            return _Run(model, inputs, recorder).trace(patterns)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_refusal(model, error, inputs)) from error


class _Run:
    """One run of a model on a tape."""

    def __init__(self, model: nn.Module, inputs: Inputs, recorder: Recorder) -> None:
        self.model, self.inputs, self.recorder = model, inputs, recorder
        self.switches = GradientSwitches()
        self.puts: tuple[Put, ...] = ()
        self._lifted: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def trace(self, patterns: tuple[str, ...]) -> fx.GraphModule:
        """The flat graph; see `trace`."""
        places, fakes = list(weight_places(self.model)), self._fake_inputs()
        made = {id(p.tensor): faked(self.recorder, p.tensor) for p in places}
        held = [(p, made[id(p.tensor)]) for p in places]
        try:
            with running_block(blocks_of(self.model, patterns)) as block, as_exported():
                self.tape = Tape(block)
                below = torch._C._AutoDispatchBelowAutograd()
                modes = (torch.no_grad(), below, self.recorder, self.recorder.onto(self.tape))
                with ExitStack() as stack:
                    for mode in (*modes, functional(self._lift)):
                        stack.enter_context(mode)
                    structure = self._run(held, fakes)
        finally:
            for place in places:
                place.holder[place.name] = place.tensor
        module = self._module()
        module.meta |= {MODE: self.recorder, SWITCHES: self.switches.found, STRUCTURE: structure}
        module.meta[PUTS] = self.puts
        return module

    def _fake_inputs(self) -> list[Any]:
        with self.recorder:
            return [
                torch.empty(x.shape, dtype=x.dtype, device=x.device) if _is_tensor(x) else x
                for x in self.inputs.leaves
            ]

    def _run(
        self, held: Sequence[tuple[WeightPlace, torch.Tensor]], fakes: Sequence[Any]
    ) -> pytree.TreeSpec:
        """Run the model, and write its results and what it wrote at the end of the graph."""
        weights: dict[int, torch.Tensor] = {}
        for place, fake in held:  # a tensor may have several places
            if id(fake) not in weights:
                weights[id(fake)] = with_inner(fake, self._weight, place.path)
            place.holder[place.name] = weights[id(fake)]
        leaves = [
            self._input(name, x) if _is_tensor(x) else x
            for name, x in zip(self.inputs.names, fakes, strict=True)
        ]
        call = self.inputs.replaced(leaves)
        given = call.kwargs()
        positions = ((leaves[i], number) for i, number in self.inputs.positions)
        with self.switches, shape_numbers(positions):
            result = self.model(**given)
        values, structure = pytree.tree_flatten(result)
        puts, placed = put_into(type(self.model).__name__, call.kwargs(), given)
        self.puts = tuple(puts)
        output = [self._node(x) if _is_tensor(x) else x for x in (*values, *placed)]
        for fake, leaf in zip(fakes, leaves, strict=True):
            if _is_tensor(fake):
                self._write(fake, leaf)
        for place, fake in held:
            if is_traceable_wrapper_subclass(fake):
                continue
            now = place.holder.get(place.name)
            if now is weights[id(fake)] or (place.is_buffer and _alike(now, fake)):
                self._write(fake, now)
            elif isinstance(now, torch.Tensor) and place.is_buffer and self._is_of_inputs(now):
                raise CaptureError(
                    f"{type(self.model).__name__} replaces buffer {place.path} "
                    f"{_form(fake)} by a tensor {_form(now)} made of its inputs; a graph can only "
                    "write into a buffer: let it keep one size, or pass it as an argument"
                )
        for tensor, fake, lifted in self._lifted.values():
            if self._node(lifted) is not self.tape.node_of(fake):
                raise CaptureError(f"{self._name_of(tensor)} is mutated by forward; {_BUFFER}")
        self.tape.graph.output(tuple(output))
        return structure

    def _is_of_inputs(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on the values of the inputs."""
        seen, open_nodes = set[fx.Node](), [self._node(tensor)]
        while open_nodes:
            node = open_nodes.pop()
            if node not in seen:
                seen.add(node)
                open_nodes += node.all_input_nodes
        return any(node.op == "placeholder" for node in seen)

    def _weight(self, path: str, fake: torch.Tensor) -> torch.Tensor:
        self.tape.attribute(path, fake)
        return FunctionalTensor.to_functional(fake)

    def _input(self, name: str, fake: torch.Tensor) -> torch.Tensor:
        self.tape.placeholder(name, fake)
        return FunctionalTensor.to_functional(fake)

    def _lift(self, tensor: torch.Tensor) -> torch.Tensor:
        """A place in the graph for a tensor that the model holds and that is no weight of it."""
        if id(tensor) not in self._lifted:
            fake = self.recorder.from_tensor(tensor)
            self.tape.constant(tensor, fake)
            self._lifted[id(tensor)] = (tensor, fake, FunctionalTensor.to_functional(fake))
        return self._lifted[id(tensor)][2]

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        """The node of what a tensor holds now."""
        if isinstance(tensor, FunctionalTensor):
            return self.tape.node_of(tensor.from_functional())
        return (
            self.tape.node_of(tensor) if self.tape.knows(tensor) else self._node(self._lift(tensor))
        )

    def _write(self, fake: torch.Tensor, tensor: Any) -> None:
        """Hand back what the model wrote into an input or a weight, as a copy into it."""
        place, value = self.tape.node_of(fake), self._node(tensor)
        if value is place:
            return
        if not _alike(value.meta["val"], fake):
            raise CaptureError(
                f"{type(self.model).__name__} changes {place.name} in place from "
                f"{_form(fake)} to {_form(value.meta['val'])}, which no graph can do; let it make "
                "a new tensor"
            )
        self.tape.graph.call_function(_COPY, (place, value)).meta["val"] = fake

    def _name_of(self, tensor: torch.Tensor) -> str:
        """What the model calls a tensor that it holds."""
        for path, module in self.model.named_modules():
            for name, value in vars(module).items():
                if value is tensor:
                    return f"{path}.{name}" if path else name
        return f"a tensor {list(tensor.shape)} that {type(self.model).__name__} holds"

    def _module(self) -> fx.GraphModule:
        """The graph on the model's own tensors."""
        graph, root = self.tape.graph, nn.Module()
        graph.eliminate_dead_code()
        constants = self.tape.constants
        for path in {str(n.target) for n in graph.find_nodes(op="get_attr")}:
            if path in constants:
                root.register_buffer(path, constants[path].detach(), persistent=False)
            else:
                share(root, self.model, path)
        return fx.GraphModule(root, graph)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _alike(value: Any, other: torch.Tensor) -> bool:
    """Whether a value is a tensor of the same shape, type and device."""
    return _is_tensor(value) and _form(value) == _form(other)


@contextmanager
def as_exported() -> Iterator[None]:
    """Inside, a model that asks whether it is being compiled or exported is told so."""
    flags: Any = torch.compiler
    before = flags._is_compiling_flag, flags._is_exporting_flag
    flags._is_compiling_flag = flags._is_exporting_flag = True
    try:
        yield
    finally:
        flags._is_compiling_flag, flags._is_exporting_flag = before


def _refusal(model: nn.Module, error: Exception, inputs: Inputs) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    why = f"{type(error).__name__}: {first}"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        why = f"{error.func}: what the model computes next depends on values, not on shapes alone"
        single = [(inputs.names[i], x) for i, x in inputs.tensors() if x.numel() == 1]
        whole = [name for name, x in single if not x.is_floating_point()]
        if whole:
            why += (
                f". Where it is a position, one of {whole}, pass a number, int(...), or a tensor "
                "in a dict or a list, which it may read before it writes: each value is a graph of "
                "its own"
            )
    line = user_line(error)
    return (
        f"{type(model).__name__} cannot be traced"
        + (f" at\n    {line}\n" if line else ": ")
        + (
            f"{why}\nMove data-dependent control flow out of the traced part, and kernels that "
            "torch does not know too (or make them a torch.library.custom_op with a fake): "
            "rewrite that line with tensor operations, or give ModelSpec a `prepare` function "
            "that does."
        )
    )
