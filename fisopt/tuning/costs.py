"""Costs: what a Program and each of its blocks take, in FLOPs or in seconds of this device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, fx

from fisopt.codegen import rounded_linears
from fisopt.codegen.compile import Backend, lowered, staged
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.told_attention import with_told
from fisopt.errors import InputError
from fisopt.overview.fastest import fastest
from fisopt.rewrite.cost import graph_cost, program_cost
from fisopt.rewrite.outline import REGION, value_key
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.weights import place_of

Unit = Literal["flops", "inductor", "eager"]
"""FLOPs, or seconds of stages that this backend runs."""
UNITS: tuple[Unit, ...] = get_args(Unit)
WARM, LEAST, SECONDS = 2, 7, 0.3
"""A stage runs so often before it is timed; then so often at least, and for so long."""


class Costs(Protocol):
    """What a Program costs, in any unit."""

    @property
    def exact(self) -> bool:
        """Whether a rewritten Program is costed itself, and not by what its options save."""

    @property
    def unrounded(self) -> Costs:
        """The same, of linears in the precision of the model."""

    def blocks(self, program: Program) -> list[float]:
        """Of each video block in one call."""

    def whole(self, program: Program) -> float:
        """Of one call."""


class FlopCosts:
    """FLOPs, with what is moved, by the cost model."""

    exact = True

    @property
    def unrounded(self) -> Costs:
        """See `Costs`; rounding changes no FLOPs."""
        return self

    def blocks(self, program: Program) -> list[float]:
        """See `Costs`."""
        return [graph_cost(block.body.graph).work for block in program.blocks]

    def whole(self, program: Program) -> float:
        """See `Costs`."""
        return program_cost(program).work


class StageTimes:
    """Seconds of this device: every stage that differs in operators or shapes is timed once.

    A stage is a block with its gathers and fills, or the code between blocks.  It runs on random
    values and on the model's own weights; its time is that of its fastest run.  Handing over the
    weights that are kept in FP8 is no stage and not counted.

    Args:
        backend: what runs it.
        known: seconds by stage, added to.
        kernels: which kernels run it.
    """

    exact = False

    def __init__(
        self,
        backend: Backend,
        known: MutableMapping[str, float],
        kernels: KernelOptions = KernelOptions(),  # noqa: B008 - it cannot change
    ) -> None:
        self.backend, self.known, self.kernels = backend, known, kernels

    @property
    def unrounded(self) -> StageTimes:
        """See `Costs`."""
        return StageTimes(self.backend, self.known, self.kernels.unrounded)

    def blocks(self, program: Program) -> list[float]:
        """See `Costs`."""
        found = dict(self._stages(program))
        return [found[f"block_{i}"] for i in range(len(program.blocks))]

    def whole(self, program: Program) -> float:
        """See `Costs`."""
        return sum(seconds for _, seconds in self._stages(program))

    def _stages(self, program: Program) -> Iterator[tuple[str, float]]:
        options, choices = with_told(self.kernels, program.source.model)
        if self.backend == "eager":
            module = lowered(program, options, choices)
        else:
            module = staged(program, {}, choices, options)
        for call in module.graph.nodes:
            if call.op == "call_module" and call.target != rounded_linears.NAME:
                yield str(call.meta[REGION]), self._seconds(program, module, call)

    def _seconds(self, program: Program, module: fx.GraphModule, call: fx.Node) -> float:
        stage = module.get_submodule(str(call.target))
        graph: Any = getattr(stage, "_orig_mod", stage).graph  # of a compiled one
        takes = [node for node in graph.nodes if node.op == "placeholder"]
        device = _device(takes)
        name = f"{self.backend} {_named(device)} {_kind(graph)}"
        if name not in self.known:
            pairs = zip(call.args, takes, strict=True)
            values = [_value(program, module, node, taken) for node, taken in pairs]
            with torch.no_grad():
                self.known[name] = fastest(
                    lambda: stage(*values), device, warm=WARM, least=LEAST, seconds=SECONDS
                )
        return self.known[name]


def costs_of(
    unit: Unit,
    known: MutableMapping[str, float],
    kernels: KernelOptions = KernelOptions(),  # noqa: B008 - it cannot change
) -> Costs:
    """Costs in a unit.

    Args:
        unit: one of `UNITS`.
        known: seconds by stage that were measured before.
        kernels: which kernels run what is timed.
    """
    return FlopCosts() if unit == "flops" else StageTimes(unit, known, kernels)


def _kind(graph: fx.Graph) -> str:
    """A name that two graphs share if they run the same operators on the same shapes."""
    rows = [(node.op == "placeholder" or str(node.target), value_key(node)) for node in graph.nodes]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _value(program: Program, module: fx.GraphModule, node: Any, taken: fx.Node) -> Any:
    """A value for an argument of a stage: the weight that it is, or random numbers."""
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        path = str(node.target)
        if (place := place_of(program.source.model, path)) is not None:
            held, name = place
            return held[name]
        owner, _, name = path.rpartition(".")
        return getattr(module.get_submodule(owner), name)
    return _random(taken.meta["val"])


def _random(fake: Any) -> Any:
    if not isinstance(fake, Tensor):
        return fake
    if fake.device.type == "meta":
        raise InputError(
            "tune: the model is on the meta device, where nothing can be timed; pass costs='flops'"
        )
    made: dict[str, Any] = {"dtype": fake.dtype, "device": fake.device}
    shape = tuple(map(int, fake.shape))
    if fake.dtype.itemsize == 1 and fake.dtype.is_floating_point:
        return torch.randn(shape, device=fake.device).to(fake.dtype)
    if fake.dtype.is_floating_point or fake.dtype.is_complex:
        return torch.randn(shape, **made)
    return torch.zeros(shape, **made)


def _named(device: torch.device) -> str:
    """What times on a device depend on: of a GPU its name, else how many threads there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.get_num_threads()}"


def _device(takes: Sequence[fx.Node]) -> torch.device:
    fakes = [node.meta["val"] for node in takes]
    found = (x.device for x in fakes if isinstance(x, Tensor) and x.device.type != "cpu")
    return next(found, torch.device("cpu"))
