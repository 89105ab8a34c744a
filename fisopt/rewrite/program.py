"""The Program: a captured model as a graph of block calls, with its layout and its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fisopt.concurrency import running, tracing
from fisopt.errors import CaptureError, InputError, OptionTypeError, VerifyError
from fisopt.rewrite.analysis.propagate import annotate
from fisopt.rewrite.axes import TokenLayout, layout_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.outline import REGION, copied, find_regions, outline, outputs_of
from fisopt.rewrite.tracing.block_paths import BLOCK
from fisopt.rewrite.tracing.frame_dims import FrameDims
from fisopt.rewrite.tracing.inputs import Inputs, bind_example
from fisopt.rewrite.tracing.origin import Source
from fisopt.rewrite.tracing.other_frames import other_frames
from fisopt.rewrite.tracing.puts import Put, place
from fisopt.rewrite.tracing.runs import check_dtypes, check_runs
from fisopt.rewrite.tracing.trace import PUTS, STRUCTURE
from fisopt.rewrite.tracing.tracer import PARTS
from fisopt.rewrite.tracing.training import asks_for_gradients, check_gradients
from fisopt.rewrite.tracing.weights import held_at, refresh
from fisopt.rewrite.tracing.writes import Write, check_apart, take_writes, write_back

BOUNDARIES = 2
"""Up to this many latent frames every frame is a boundary and no axis is needed."""


@dataclass(frozen=True)
class Returned:
    """What one forward call of a Program returns.

    Attributes:
        output: the model's own return value.
        written: what the model puts into containers, in the order of `puts`, then the new values
            of what it changes in place, in the order of `writes`.
        state: tensors for later steps by name.
        gauges: measurements by name.
    """

    output: Any
    written: tuple[torch.Tensor, ...]
    state: dict[str, torch.Tensor]
    gauges: dict[str, torch.Tensor]


@dataclass
class Program:
    """A video DiT as a graph: one call for each repeated block, and the code around the blocks.

    Attributes:
        graph_module: the graph; blocks are submodules that take their parameters as arguments.
        layout: the token grid of the video.
        inputs: the call it was captured for; its plain values are constants of the graph.
        source: the model, and how to capture it again at another shape.
        out_structure: the pytree of the return value.
        writes: the inputs and buffers that the model changes in place, or parts of them. The graph
            returns their new values after the model's own results and after ``puts``, in order.
        puts: values that the model puts into dicts and lists of its arguments; the graph returns
            the tensors among them after the model's own results.
        loads: names of the state that the graph takes after its inputs, in order; each starts with
            its pass.
        stores: names of the state that the graph returns after ``writes``, in order.
        gauges: names of the measurements that the graph returns after the state, in order.
        unfinished: the pass that has ended the Program early, to decide how the call continues; the
            state it stores is for the rest of the same call.
        resumed: whether the Program is the rest of such a call.
        mesh: what the ranks divide among them, in the order of division.
    """

    graph_module: fx.GraphModule
    layout: TokenLayout
    inputs: Inputs
    source: Source
    out_structure: pytree.TreeSpec
    writes: tuple[Write, ...] = ()
    puts: tuple[Put, ...] = ()
    loads: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    gauges: tuple[str, ...] = ()
    unfinished: str = ""
    resumed: bool = False
    mesh: tuple[Share, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph of block calls."""
        return self.graph_module.graph

    @property
    def ranks(self) -> int:
        """Number of ranks that run it together."""
        return math.prod(share.count for share in self.mesh)

    @property
    def framed(self) -> tuple[str, ...]:
        """Names of the inputs that carry frames or are written: their values change each step."""
        written = [w.name for w in self.writes if w.leaf is not None]
        put = tuple(p.name for p in self.puts)
        written += [n for n in self.inputs.names if n.startswith(put)]
        return (*(self.inputs.names[i] for i in self.source.frame_dims), *written)

    @property
    def blocks(self) -> list[Block]:
        """The video blocks that run, in execution order."""
        calls = [n for n in self.graph.nodes if _calls_block(n)]
        ran = {n.meta[REGION] for n in calls}
        places = [i for i, path in enumerate(self.block_paths) if path in ran]
        pairs = zip(places, calls, strict=True)
        return [Block(n.meta[REGION], i, n, self.callee(n)) for i, n in pairs]

    def block(self, path: str) -> Block:
        """The video block at a path, if it runs."""
        return next(block for block in self.blocks if block.path == path)

    @property
    def block_paths(self) -> list[str]:
        """Paths of the video blocks in execution order, including those that hooks skip."""
        ran = [n.meta[REGION] for n in self.graph.nodes if _calls_block(n)]
        return self.source.with_skipped(ran)

    @property
    def own_results(self) -> int:
        """Number of values it returns before any state: the model's results, puts and writes."""
        return self.out_structure.num_leaves + len(self.left)

    @property
    def left(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and sizes of ``puts`` and ``writes``, in order."""
        put = [(p.name, result.shape) for p in self.puts for result in p.results]
        return [*put, *((w.name, w.shape) for w in self.writes)]

    @property
    def written(self) -> set[fx.Node]:
        """The nodes after the video blocks that lead to a write, including results of blocks."""
        return self._behind(slice(self.out_structure.num_leaves, self.own_results))

    @property
    def returned(self) -> set[fx.Node]:
        """The nodes after the video blocks that lead to the model's results, likewise."""
        return self._behind(slice(self.out_structure.num_leaves))

    def _behind(self, ends: slice) -> set[fx.Node]:
        open_nodes = [n for n in outputs_of(self.graph)[ends] if isinstance(n, fx.Node)]
        found: set[fx.Node] = set()
        while open_nodes:
            node = open_nodes.pop()
            if node not in found:
                found.add(node)
                open_nodes += [] if node.op == "call_module" else node.all_input_nodes
        return found

    def callee(self, call: fx.Node) -> fx.GraphModule:
        """The graph module of a call node."""
        module = self.graph_module.get_submodule(str(call.target))
        if not isinstance(module, fx.GraphModule):
            raise VerifyError(f"{call} does not call a graph module")
        return module

    def copy(self) -> Program:
        """A copy with a graph of its own to edit; it shares callees and parameters."""
        module = self.graph_module
        graph, _ = copied(module.graph)
        shared = fx.GraphModule(module, graph, class_name="Program")
        shared.meta.update(module.meta)
        for name, buffer in module.named_buffers(recurse=False):
            if not hasattr(shared, name):
                shared.register_buffer(name, buffer, persistent=False)
        return replace(self, graph_module=shared)

    def at(self, inputs: Mapping[str, Any] | Inputs) -> Program:
        """The unoptimised Program of the same model for inputs of other shapes."""
        bound = inputs if isinstance(inputs, Inputs) else self._bind(inputs)
        return build(self.source, bound)

    def resized(self, grid: int | TokenLayout) -> Program:
        """The unoptimised Program at another token grid or another number of latent frames.

        With another number of frames it has the same nodes. At a grid ``(K, 1, 1)``, or any grid of
        K tokens, its blocks compute K tokens, if the model accepts such a grid.

        Raises:
            CaptureError: the model does not accept it, or fisopt does not know how to resize the
                inputs.
        """
        other = replace(self.layout, frames=grid) if isinstance(grid, int) else grid
        if other == self.layout:
            return build(self.source, self.inputs)
        inputs = self.source.at_grid(self.inputs, self.layout, other)
        plane = (other.height, other.width) == (self.layout.height, self.layout.width)
        return build(self.source, inputs, None if plane else other)

    def __call__(self, **kwargs: Any) -> Any:
        """Run the Program eagerly on inputs of the captured shapes; returns what the model does.

        Gradients flow where an input or a parameter asks for one and they are not turned off.

        Raises:
            InputError: it takes state of an earlier step, which only a running generation has; or
                a position among the inputs is another than it was made for.
        """
        if self.loads:
            raise InputError(
                f"this Program reuses state of an earlier step ({', '.join(self.loads[:2])}, ...); "
                "run it through `fisopt.optimize`, or at a step that makes the state"
            )
        refresh(self.graph_module, self.source.model)
        inputs = self._bind(kwargs)
        for (i, made_for), (_, got) in zip(self.inputs.positions, inputs.positions, strict=False):
            if made_for != got:
                raise InputError(
                    f"this Program is for {inputs.names[i]} = {made_for}, got {got}; "
                    "program.at(inputs) makes one for other positions"
                )
        self.check(inputs)
        model, tensors = self.source.model, [x for _, x in inputs.tensors()]
        if training := asks_for_gradients(model, tensors):
            check_gradients(self.graph_module, model)
        with torch.set_grad_enabled(training), running():
            values = self.graph_module(*tensors)
        returned = self.split(values)
        self.write_back(inputs, returned)
        return returned.output

    def check(self, inputs: Inputs) -> None:
        """Raise if an input shares memory with another input that the model writes."""
        if self.writes:
            check_apart(inputs, self.writes)

    def write_back(self, inputs: Inputs, returned: Returned) -> None:
        """Copy the new values of caches and buffers after a run to where the model holds them."""
        put = len(returned.written) - len(self.writes)
        if self.writes:
            held = partial(held_at, self.source.model, self.graph_module)
            write_back(self.writes, returned.written[put:], inputs, held)
        if self.puts:
            place(inputs.given, self.puts, returned.written[:put])

    def split(self, values: Sequence[Any]) -> Returned:
        """Split the graph's outputs into the model's own return value, state and measurements."""
        count, own = self.out_structure.num_leaves, self.own_results
        end = own + len(self.stores)
        return Returned(
            pytree.tree_unflatten(list(values[:count]), self.out_structure),
            tuple(values[count:own]),
            dict(zip(self.stores, values[own:end], strict=True)),
            dict(zip(self.gauges, values[end:], strict=True)),
        )

    def values(self, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors that the graph takes, from one forward call's keyword arguments."""
        return [x for _, x in self._bind(kwargs).tensors()]

    def _bind(self, kwargs: Mapping[str, Any]) -> Inputs:
        return bind_example(self.source.model, kwargs)


def _calls_block(node: fx.Node) -> bool:
    return node.op == "call_module" and BLOCK in node.meta


def check_program(value: object) -> None:
    """Insist on a Program.

    Raises:
        OptionTypeError: it is something else, such as a model or what `fisopt.optimize` returned.
    """
    if not isinstance(value, Program):
        raise OptionTypeError(
            f"got {type(value).__name__}, wanted a Program: fisopt.capture(model, inputs) makes "
            "one, and .program(inputs) of an optimised module"
        )


def pass_of(state: str) -> str:
    """The pass that a tensor of the state belongs to: the first part of its name."""
    return state.partition("/")[0]


def build(source: Source, inputs: Inputs, layout: TokenLayout | None = None) -> Program:
    """Make the Program of a model for inputs of some shapes; made once per shape.

    Args:
        source: of the model.
        inputs: the shapes.
        layout: their token grid, where what is said of the model does not tell it.
    """
    key = (inputs.key(), layout)
    with tracing():
        if (program := source.cache.get(key)) is None:
            try:
                grid = layout or layout_of(source.grid_of(inputs.kwargs()))
                program = source.cache[key] = _build(source, inputs, grid)
            except CaptureError:
                check_runs(source.model, inputs)  # the inputs may be at fault
                raise
        return program


def _build(source: Source, inputs: Inputs, layout: TokenLayout) -> Program:
    _check_filled(inputs, source.frame_dims)
    source.learn(inputs, layout)
    program: Program = source.kept.program(
        source, inputs, layout, lambda: _traced(source, inputs, layout)
    )
    return program


def _traced(source: Source, inputs: Inputs, layout: TokenLayout) -> Program:
    step = source.followed.step
    flat = source.tracer.flat(inputs, source.of_frames)
    check_dtypes(source.model, flat.graph, inputs)
    if step > 0 and layout.frames > BOUNDARIES:
        other, by = other_frames(source, inputs, layout, flat)
        annotate(flat.graph, other, layout.frames, by)
    regions = find_regions(flat.graph, lambda n: n.meta.get(BLOCK))
    module, calls = outline(flat, regions, "block")
    for name, call in calls.items():
        call.meta[BLOCK] = name
    writes, values = take_writes(module.graph, inputs)
    return_leaves(module, values)
    structure = flat.meta[STRUCTURE]
    writes = (*flat.meta[PARTS], *writes)
    return Program(module, layout, inputs, source, structure, writes, flat.meta[PUTS])


def _check_filled(inputs: Inputs, frame_dims: FrameDims) -> None:
    """Refuse a video without values, such as a batch of no items."""
    for i, leaf in inputs.tensors():
        if i in frame_dims and not leaf.numel():
            raise InputError(
                f"input {inputs.names[i]!r} of shape {tuple(leaf.shape)} carries the frames and "
                "holds no values; wanted one item or more"
            )


def return_leaves(module: fx.GraphModule, written: Sequence[fx.Node]) -> None:
    """Make the graph return what the model returns, then what it writes."""
    module.graph.output_node().args = ([*outputs_of(module.graph), *written],)
    module.recompile()
